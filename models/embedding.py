"""Embeddings of the noise level and the class, shared by all denoising networks.

(1)  e(c) = [cos(ω_k c), sin(ω_k c)],  ω_k = 10⁻⁴ᵏ⁄ᴷ,  k = 0 … K−1       1706.03762 §3.5, as DDPM uses it for t
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.model import class_rows, wide


def sinusoidal(c: Float[Array, " b"], features: int, max_period: float = 1e4) -> Float[Array, "b features"]:
    """Eq. (1); `features` must be even. c is on the scale of DDPM's step index, 0…1000."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half) / half)
    angles = wide(c)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Conditioning(nn.Module):
    """Noise level, class and length of a jump as one vector: Dense(silu(Dense(e(c)))), a row of a table, and a second
    such embedding, summed."""

    features: int  # width of the result
    base: int  # width of the sinusoidal embedding
    num_classes: int = 0  # 0: unconditional. The table has one row more, for "no class".

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        interval: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b features"]:
        hidden = nn.Dense(self.features, name="hidden")(sinusoidal(noise, self.base))
        out = nn.Dense(self.features, name="out")(nn.silu(hidden))
        if self.num_classes:
            index = class_rows(label, noise.shape[0], self.num_classes)
            out = out + nn.Embed(self.num_classes + 1, self.features, name="label")(index)
        if interval is not None:
            hidden = nn.Dense(self.features, name="interval_hidden")(sinusoidal(interval, self.base))
            out = out + nn.Dense(self.features, name="interval_out")(nn.silu(hidden))
        return out
