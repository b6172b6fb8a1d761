"""How often a sequence is drawn right from its first token to its last."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from metrics.examples import OverExamples, named
from metrics.metric import Evaluation
from models.language_model import TokenModel
from samplers.autoregressive import Decoding
from samplers.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class ExactMatch(OverExamples):
    """Fraction of test examples whose every token that counts is drawn as the data has it, greedily by default.

    Of a task the prompt is given, of a pair the source; `token_match` is the fraction of single tokens.
    """

    sampler: Sampler = field(default_factory=lambda: Decoding(temperature=0.0))

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model, data = evaluation.model, evaluation.data
        if not isinstance(model, TokenModel):
            raise ValueError(f"sequences are drawn from a TokenModel; this run's model is {type(model).__name__}")
        arrays = data.arrays(self.split, self.examples)
        told = {"prompt": arrays["x"][:, : data.prompt_length]} if data.prompt_length else {}

        def drawn(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            return self.sampler(model, variables, keys, batch, data.shape).x

        x = self.over(drawn, evaluation, arrays | told)
        counts = arrays.get("weight", np.ones(arrays["x"].shape)) > 0
        right = (x == arrays["x"]) | ~counts
        of_tokens = (right & counts).sum() / counts.sum()
        return named({"exact_match": right.all(axis=1).mean(), "token_match": of_tokens}, self.split)
