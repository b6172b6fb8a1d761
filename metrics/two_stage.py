"""What images cost in two stages: their codes under a prior, and the images under the decoder.

    (1)  −log₂ P(x) ≤ −log₂ P(c) − log₂ P(x | c),  c the codes of x          models/codec.py, eq. 1; bits/dim: over D

P(c) is exact under models that draw one code after another, and a bound under models/masked.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from data.dataset import Dataset
from data.encoded import Encoded
from losses.masked import log_prob_bounds
from losses.sequence import log_probs
from metrics.examples import OverExamples, is_conditional, mean_and_error, named
from metrics.metric import Evaluation
from models.language_model import TokenModel
from models.masked import MaskedModel


@dataclass(frozen=True, kw_only=True)
class TwoStageLikelihood(OverExamples):
    """Eq. (1) of a split, both of its parts, and their sum with its standard error.

    A prior that is told classes is told each example's own.
    """

    examples: int = 10_000
    draws: int = 8  # masks an example, where P(c) is a bound

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1")

    def check(self, data: Dataset) -> None:
        if not isinstance(data, Encoded):
            raise ValueError(f"two stages are of a first stage's codes, not of {type(data).__name__}")

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model, data = evaluation.model, evaluation.data
        assert isinstance(data, Encoded)

        def of_codes(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            if isinstance(model, TokenModel):
                return jnp.sum(log_probs(model, variables, batch)[0], axis=1)
            if isinstance(model, MaskedModel):
                return log_prob_bounds(model, variables, batch, keys, self.draws)
            raise ValueError(
                f"the probability of codes is a TokenModel's or a MaskedModel's, not a {type(model).__name__}'s"
            )

        arrays = data.arrays(self.split, self.examples)
        codes = np.asarray(self.over(of_codes, evaluation, arrays), np.float64)
        images = np.asarray(data.log_prob_of_images(self.split, self.examples), np.float64)
        bits = 1.0 / (math.prod(data.pictured.shape) * math.log(2.0))
        numbers = mean_and_error("bits_per_dim", -bits * (codes + images))
        numbers |= {"bits_per_dim_of_codes": -bits * codes.mean(), "bits_per_dim_of_images": -bits * images.mean()}
        return named(numbers, self.split, is_conditional(model, arrays))
