"""The diffusion transformer: patches as tokens, conditioned through adaptive layer norms that start at zero.

    (1)  h = patches·W + positions,  positions fixed 2-D sines and cosines            2212.09748 §3.2; 2010.11929
    (2)  (β₁, γ₁, a₁, β₂, γ₂, a₂) = W_c·silu(c) + b_c,  zero at the start             2212.09748 §3.2, adaLN-Zero
    (3)  h ← h + a₁·Attention((1 + γ₁)·LN(h) + β₁)
         h ← h + a₂·MLP((1 + γ₂)·LN(h) + β₂),  MLP of width `expansion`·width with tanh-GELU
    (4)  F = Dense((1 + γ)·LN(h) + β), tokens back to their patches;  Dense starts at zero

LN has no scale or shift of its own. All blocks are one scan (models/stack.py). Everything is a matrix product, which is
what a CPU, too, is quick at.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.attention import Attention
from models.embedding import Conditioning
from models.model import Net, wide
from models.patches import check_sides, patched, positions, unpatched
from models.stack import Stack
from models.transformer import FeedForward

Image = Float[Array, "b h w c"]
FREQUENCIES = 256  # width of the sinusoidal embedding of the noise level


def modulated(h: Float[Array, "b n f"], shift: Float[Array, "b f"], scale: Float[Array, "b f"]) -> Array:
    """(1 + γ)·LN(h) + β, in float32."""
    normal = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)(h)
    return normal * (1.0 + scale[:, None, :]) + shift[:, None, :]


class DiTBlock(nn.Module):
    """Block (2), (3)."""

    width: int
    heads: int
    expansion: int
    dropout: float
    dtype: str | None

    @nn.compact
    def __call__(self, h: Float[Array, "b n f"], c: Float[Array, "b f"], train: bool = False) -> Float[Array, "b n f"]:
        adaptive = nn.Dense(6 * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="adaptive")
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(wide(adaptive(c)), 6, axis=-1)
        attention = Attention(self.width, self.heads, dtype=self.dtype, name="attention")
        h = h + gate1[:, None, :] * wide(attention(modulated(h, shift1, scale1)))
        hidden = self.expansion * self.width
        mlp = FeedForward(self.width, hidden, "gelu_tanh", dropout=self.dropout, dtype=self.dtype, name="mlp")
        return h + gate2[:, None, :] * wide(mlp(modulated(h, shift2, scale2), train))


class DiT(Net):
    """DiT over images [B, H, W, C]; its sizes are the paper's presets or one's own."""

    width: int = 384  # of a token
    depth: int = 12  # number of blocks
    heads: int = 6  # of attention; must divide `width`
    patch: int = 2  # side of a patch; must divide the image's sides
    expansion: int = 4  # hidden width of the MLP over `width`
    dropout: float = 0.0  # of that hidden layer, while training
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    @nn.compact
    def __call__(
        self,
        x: Image,
        noise: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        interval: Float[Array, " b"] | None = None,
    ) -> Image:
        b, height, width, channels = x.shape
        p = self.patch
        check_sides(x, p, f"a DiT with patches of {p}x{p}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"a DiT's width must be divisible by 4 and by its heads, got {self.width} and {self.heads}"
            )
        rows, columns = height // p, width // p
        c = nn.silu(
            Conditioning(self.width, FREQUENCIES, self.num_classes, name="conditioning")(noise, label, interval)
        )
        patches = patched(x, p).reshape(b, rows * columns, -1)
        embed = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="embed")
        h = wide(embed(patches))
        h = h + jnp.asarray(positions(rows, columns, self.width), h.dtype)[None]
        block = DiTBlock(self.width, self.heads, self.expansion, self.dropout, self.dtype, parent=None)
        h, _ = Stack(block, self.depth, self.remat, name="blocks")(h, c, train=train)
        zeros = nn.initializers.zeros
        shift, scale = jnp.split(nn.Dense(2 * self.width, kernel_init=zeros, name="adaptive_out")(c), 2, axis=-1)
        out = nn.Dense(p * p * channels, kernel_init=zeros, name="out")(modulated(h, shift, scale))
        return unpatched(out.reshape(b, rows, columns, -1), p)


# The paper's sizes (2212.09748 table 1). With patches of 2 on its 32×32×4 latents and 1,000 classes they have 33, 130,
# 458 and 675 million parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
