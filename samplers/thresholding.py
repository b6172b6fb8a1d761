"""Dynamic thresholding: x̂₀ kept in range by its own spread, where strong guidance drives it out.

(1)  s = max(b, quantile_p |x̂₀|), of each sample;  x̂₀ ← clip(x̂₀, −s, s)·b/s          Imagen, 2205.11487 §2.3
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.denoiser import Denoise
from samplers.transforms import Network, Transform


@dataclass(frozen=True, kw_only=True)
class DynamicThreshold(Transform):
    """Clips each sample's x̂₀ at a quantile of its own and scales it back to the data's range; in place of `Clip`."""

    percentile: float = 0.995  # p, as a fraction
    bound: float = 1.0  # b, the lowest threshold: the data lies in [−b, b]

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile <= 1.0 or not self.bound > 0.0:
            raise ValueError(
                f"dynamic_threshold: percentile={self.percentile:g} must be in (0, 1] and bound={self.bound:g} positive"
            )

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        def bounded(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            x0 = denoise(x, t)
            axes = tuple(range(1, x0.ndim))
            s = jnp.maximum(jnp.quantile(jnp.abs(x0), self.percentile, axis=axes, keepdims=True), self.bound)
            return jnp.clip(x0, -s, s) * (self.bound / s)

        return bounded
