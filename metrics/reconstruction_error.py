"""How well a first stage's images come back, and how its codes are used.

(1)  normalised error = Σ (x − x̂)²/Σ (x − x̄)² over all pixels of all images, x̄ their one mean
(2)  bits/dim of reconstruction = −log₂ P(x | what went through)/D         models/observation.py; it is no bound on
     −log₂ P(x): what went through has a rate of its own
(3)  rate of codes of equal length = T·log₂ K/D bits/dim;  of a VAE E[KL]/(D·log 2)
(4)  perplexity and usage of models/quantize.py, eq. 4, over all examples
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from metrics.examples import OverExamples, mean_and_error, named
from metrics.metric import Evaluation
from models.codec import Codec
from models.model import Model


def codec(model: Model) -> Codec:
    """`model`, if it is a first stage.

    Raises:
      ValueError: it is another kind of model.
    """
    if not isinstance(model, Codec):
        raise ValueError(f"images are reconstructed by a VQVAE or VQVAE2; this run's model is {type(model).__name__}")
    return model


@dataclass(frozen=True, kw_only=True)
class ReconstructionError(OverExamples):
    """Eq. (1)–(4) of a split."""

    examples: int = 10_000

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = codec(evaluation.model)

        def measured(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            x = batch["x"]
            found = model.reconstruct(variables, x)
            codes = model.encode(variables, x) if model.coded else x[:, :0, 0, 0]
            return (found.image - x) ** 2, found.log_prob, found.kl, codes

        arrays = evaluation.data.arrays(self.split, self.examples)
        x = np.asarray(arrays["x"], np.float64)
        squared, log_prob, kl, codes = self.over(measured, evaluation, arrays)
        bits = 1.0 / (x[0].size * math.log(2.0))
        numbers = {"normalised_error": float(np.asarray(squared, np.float64).mean() / x.var())}
        numbers |= mean_and_error("bits_per_dim_of_reconstruction", -bits * log_prob)
        if model.coded:
            counts = np.bincount(codes.reshape(-1), minlength=model.codes)
            p = counts[counts > 0] / counts.sum()
            numbers["bits_per_dim_of_equal_codes"] = bits * codes.shape[1] * math.log(model.codes)
            numbers |= {"perplexity": float(np.exp(-np.sum(p * np.log(p)))), "usage": float(np.mean(counts > 0))}
        elif np.any(kl):
            numbers["bits_per_dim_of_latents"] = float(bits * kl.mean())
        return named(numbers, self.split)
