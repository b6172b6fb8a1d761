"""Samples that agree with a measurement y = Ax₀ (+ noise): inpainting, deblurring, super-resolution.

    (1)  x̂₀ ← x̂₀ + A⁺(y − A·x̂₀)                                                    DDNM, 2212.00490 eq. 13
    (2)  x̂₀ ← x̂₀ + s·(σ²/α)·JᵀAᵀ(r²·AAᵀ + n²·I)⁻¹(y − A·x̂₀),   J = ∂x̂₀/∂xₜ          ΠGDM, Song et al., ICLR 2023
    (3)  r² = σ²/(α² + σ²), the posterior variance of unit-variance data              ΠGDM

(2) is the score of y under x₀ | xₜ ~ N(x̂₀, r²I), taken to x̂₀ by σ²/α (samplers/classifier_guidance.py); for data
N(0, I) it is exact. (1) holds y exactly, but for what A⁺ leaves out of a blur, and knows of no noise. Both read y from
`condition["known"]` [n, …].
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.denoiser import Denoise
from models.model import Condition
from paths.path import expand
from samplers.classifier_guidance import score_to_data
from samplers.operators import Operator
from samplers.transforms import Network, Transform


def measurement(condition: Condition, name: str) -> Float[Array, "n *m"]:
    """y from the condition.

    Raises:
      ValueError: it has none.
    """
    if "known" not in (condition or {}):
        raise ValueError(f"{name} needs condition['known'], what was measured of each sample; there is none")
    return (condition or {})["known"]


def check_shape(known: Float[Array, "n *m"], measured: Float[Array, "n *k"]) -> None:
    """Raises a ValueError where what is known has another shape than what the operator measures."""
    if known.shape != measured.shape:
        raise ValueError(
            f"condition['known'] has shape {tuple(known.shape)}, but the operator measures {tuple(measured.shape)}"
        )


@dataclass(frozen=True, kw_only=True)
class Replacement(Transform):
    """Eq. (1). With a mask the known pixels of x̂₀ are y's own, bit for bit, and so are the last step's."""

    operator: Operator

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        known, linear = measurement(network.condition, "replacement"), self.operator.bind(network.condition)

        def replaced(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            x0 = denoise(x, t)
            check_shape(known, linear.apply(x0))
            return linear.consistent(x0, known)

        return replaced


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Transform):
    """Eq. (2), its gradient through the network and all transforms within."""

    operator: Operator
    scale: float = 1.0  # s
    noise: float = 0.0  # n, the standard deviation of the noise in y

    def __post_init__(self) -> None:
        if self.noise < 0.0:
            raise ValueError(f"reconstruction: noise={self.noise:g} is a standard deviation and cannot be negative")

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        known, linear = measurement(network.condition, "reconstruction"), self.operator.bind(network.condition)
        path = network.model.path

        def reconstructed(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            x0, pull = jax.vjp(lambda x: denoise(x, t), x)
            measured = linear.apply(x0)
            check_shape(known, measured)
            time = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
            alpha, sigma = path.alpha(time), path.sigma(time)
            variance = sigma**2 / (alpha**2 + sigma**2)
            weighted = linear.adjoint(linear.gram_solve(known - measured, variance, self.noise**2))
            (gradient,) = pull(weighted)
            return x0 + expand(self.scale * score_to_data(path, time), x) * gradient

        return reconstructed
