"""Guidance by a classifier of noisy data.

    (1)  ∇log p(xₜ|y) = ∇log p(xₜ) + s·∇log p(y|xₜ)                              2105.05233 eq. 10-14; 2011.13456 eq. 14
    (2)  x̂₀ ← x̂₀ + s·(σ²/α)·∇log p(y|xₜ)                                          (1) through x̂₀ = (xₜ + σ²·score)/α

At s = 1 and with an exact classifier (2) is E[x₀ | xₜ, y] itself. The gradient is that of the whole batch at the states
that the solver is at; it is not passed through the network.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.classifier import NoisyClassifier
from models.denoiser import Denoise
from paths.path import Path, expand
from paths.predictions import LOWEST_LOG_SNR
from samplers.transforms import Network, Transform


def score_to_data(path: Path, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """σ²/α, what a change of the score is in x̂₀. Zero at noise that leaves nothing of the data, where α is (almost) 0:
    the change that it multiplies is of α's own size there, and float32 has no digits left of it."""
    t = jnp.asarray(t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    heard = alpha > jnp.exp(0.5 * LOWEST_LOG_SNR) * sigma
    return jnp.where(heard, sigma**2 / jnp.where(heard, alpha, 1.0), 0.0)


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(Transform):
    """Towards states that a classifier gives the class; its variables lie in `variables["classifier"]`."""

    scale: float  # s; 1 samples the class as the classifier sees it, 0 is no guidance
    classifier: NoisyClassifier  # trained on the model's own path

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        path, classes = network.model.path, network.model.num_classes
        if self.classifier.path != path:
            raise ValueError(
                f"classifier_guidance: the classifier's path is {self.classifier.path}, the model's {path}"
            )
        if classes not in (0, self.classifier.num_classes):
            raise ValueError(
                f"classifier_guidance: the classifier has {self.classifier.num_classes} classes, the model {classes}"
            )
        if "classifier" not in network.variables:
            raise ValueError("classifier_guidance needs variables['classifier']; there are none")
        condition = network.condition or {}
        if "label" not in condition:
            raise ValueError("classifier_guidance needs condition['label'], the class to guide to; there is none")
        variables, label = network.variables["classifier"], condition["label"]

        def guided(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            times = jnp.broadcast_to(t, x.shape[:1])
            total = lambda x: jnp.sum(self.classifier.log_prob(variables, x, times, label))  # noqa: E731
            return denoise(x, t) + expand(self.scale * score_to_data(path, times), x) * jax.grad(total)(x)

        return guided
