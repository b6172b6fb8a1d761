"""ΠGDM: samples that agree with a measurement y = Ax₀ + noise: inpainting, deblurring, super-resolution.

    (1)  x̂₀ ← x̂₀ + s·(σ²/α)·JᵀAᵀ(r²·AAᵀ + n²·I)⁻¹(y − A·x̂₀),   J = ∂x̂₀/∂xₜ          Song et al., ICLR 2023
    (2)  r² = σ²/(α² + σ²), the posterior variance of unit-variance data              ibid.

(1) is the score of y under x₀ | xₜ ~ N(x̂₀, r²I), taken to x̂₀ by σ²/α (samplers/classifier_guidance.py); for data
N(0, I) it is exact. y is `condition["known"]` [n, …].
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.path import expand
from samplers.classifier_guidance import score_to_data
from samplers.operators import Operator, check_shape, measurement
from samplers.transforms import Network, Transform


@dataclass(frozen=True, kw_only=True)
class PiGDM(Transform):
    """Eq. (1), its gradient through the network and all transforms within."""

    NAME: ClassVar[str] = "pigdm"

    operator: Operator
    scale: float = 1.0  # s
    noise: float = 0.0  # n, the standard deviation of the noise in y

    def __post_init__(self) -> None:
        if self.noise < 0.0:
            raise ValueError(f"ΠGDM: noise={self.noise:g} is a standard deviation and cannot be negative")

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        known, linear = measurement(network.condition, "ΠGDM"), self.operator.bind(network.condition)
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
