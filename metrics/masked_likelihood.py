"""Held-out likelihood of a masked model, as far as it is known: from above.

    (1)  nats a token ≤ mean of −(a lower bound of log P(x))/T       losses/masked.py eq. (3), of `draws` masks each
    (2)  bits a token = (1)/log 2; bits/dim where a token is a pixel

P is the mean over all orders of drawing one token after the other; what a sampler draws many at once has another.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Key

from data.image_tokens import ImageTokens
from losses.masked import log_prob_bounds
from metrics.examples import OverExamples, is_conditional, mean_and_error, named
from metrics.metric import Evaluation
from models.masked import MaskedModel


@dataclass(frozen=True, kw_only=True)
class MaskedLikelihood(OverExamples):
    """Eq. (1) and (2) of a split, with standard errors over examples."""

    draws: int = 16  # masks an example; a multiple of its tokens has every number of masked ones equally often

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1")

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = evaluation.model
        if not isinstance(model, MaskedModel):
            raise ValueError(f"masked tokens are what a MaskedModel predicts; this run's is {type(model).__name__}")

        def bounds(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Array:
            return log_prob_bounds(model, variables, batch, keys, self.draws)

        arrays = evaluation.data.arrays(self.split, self.examples)
        nats = -self.over(bounds, evaluation, arrays) / arrays["x"].shape[1]
        unit = "dim" if isinstance(evaluation.data, ImageTokens) else "token"
        numbers = {
            **mean_and_error("nats_per_token_bound", nats),
            **mean_and_error(f"bits_per_{unit}_bound", nats / math.log(2.0)),
        }
        return named(numbers, self.split, is_conditional(model, arrays))
