"""Held-out likelihood of a model of tokens.

(1)  nats a token = −Σ w_t·log P(x_t | x_<t)/Σ w_t,  w_t = 1 for tokens that count
(2)  bits a token = (1)/log 2: bits per character of a text, and bits/dim, exactly, where a token is a pixel
(3)  perplexity = exp((1))
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from data.image_tokens import ImageTokens
from losses.sequence import log_probs
from metrics.examples import OverExamples, is_conditional, named
from metrics.metric import Evaluation
from models.language_model import TokenModel


@dataclass(frozen=True, kw_only=True)
class TokenLikelihood(OverExamples):
    """Eq. (1)–(3) of a split, with the standard error of (1) over examples.

    Of a text in windows every window begins afresh, so that its first tokens are told little; a recurrent network that
    was trained with a carried state is read over many windows as one.
    """

    join: int = 1  # consecutive windows of a text that are read as one, fewer where there are not as many

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = evaluation.model
        if not isinstance(model, TokenModel):
            raise ValueError(f"tokens are what a TokenModel predicts; this run's model is {type(model).__name__}")

        def sums(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            return tuple(jnp.sum(value, axis=1) for value in log_probs(model, variables, batch))

        arrays = evaluation.data.arrays(self.split, self.examples)
        if self.join != 1:
            arrays = {"x": joined(arrays["x"], max(1, min(self.join, len(arrays["x"]) // 2)))}  # two, for an error
        log_prob, count = (np.asarray(found, np.float64) for found in self.over(sums, evaluation, arrays))
        nats = -log_prob.sum() / count.sum()
        error = np.std(-log_prob - nats * count, ddof=1) / (np.sqrt(len(count)) * count.mean())
        unit = "dim" if isinstance(evaluation.data, ImageTokens) else "token"
        numbers = {
            "nats_per_token": nats,
            "nats_per_token_stderr": error,
            f"bits_per_{unit}": nats / math.log(2.0),
            f"bits_per_{unit}_stderr": error / math.log(2.0),
            "perplexity": math.exp(nats),
        }
        return named(numbers, self.split, is_conditional(model, arrays))


def joined(x: Int[np.ndarray, "n t"], count: int) -> Int[np.ndarray, "m _"]:
    """Windows of a text, so many of them as one: each begins with the token that the one before it ended with.

    Raises:
      ValueError: they do not, or are fewer.
    """
    rows = len(x) // max(count, 1)
    if count < 1 or not rows or np.any(x[:-1, -1] != x[1:, 0]):
        raise ValueError(f"join={count} is of consecutive windows of a text, of which there must be as many")
    whole = x[: rows * count].reshape(rows, count, -1)
    return np.concatenate([whole[:, :, :-1].reshape(rows, -1), whole[:, -1, -1:]], axis=1)
