"""Residual MLP with noise-level conditioning: vectors, 2-D toys and small images, and nothing but matrix products.

(1)  h ← h + W₂·silu(W₁·((1 + a(c))·LN(h) + b(c))),   c the conditioning vector       pre-activation residual block
(2)  a, b and W₂ start at zero, so every block starts as the identity
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.embedding import Conditioning
from models.model import Net, wide
from models.remat import named
from models.stack import Stack

CONDITIONING = 128  # width of c: noise level and class need few numbers, and every block pays for it


class MLPBlock(nn.Module):
    """Block (1)."""

    width: int
    expansion: int
    dropout: float
    dtype: str | None

    @nn.compact
    def __call__(
        self, h: Float[Array, "b width"], c: Float[Array, "b f"], train: bool = False
    ) -> Float[Array, "b width"]:
        zeros = nn.initializers.zeros
        scale, shift = jnp.split(nn.Dense(2 * self.width, kernel_init=zeros, dtype=self.dtype, name="film")(c), 2, -1)
        y = nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1.0 + scale) + shift
        y = nn.silu(named(nn.Dense(self.expansion * self.width, dtype=self.dtype, name="up")(y), "hidden"))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return h + nn.Dense(self.width, kernel_init=zeros, dtype=self.dtype, name="down")(y).astype(h.dtype)


class MLP(Net):
    """Residual MLP over the flattened input."""

    width: int = 384  # width of the residual stream
    depth: int = 4  # number of residual blocks
    expansion: int = 2  # hidden width of a block over `width`
    dropout: float = 0.0  # of the hidden layer, while training
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *s"],
        noise: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        interval: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b *s"]:
        size = math.prod(x.shape[1:])
        c = nn.silu(
            Conditioning(CONDITIONING, CONDITIONING, self.num_classes, name="conditioning")(noise, label, interval)
        )
        h = wide(nn.Dense(self.width, dtype=self.dtype, name="in")(x.reshape(x.shape[0], size)))
        block = MLPBlock(self.width, self.expansion, self.dropout, self.dtype, parent=None)
        h, _ = Stack(block, self.depth, self.remat, name="blocks")(h, c, train=train)
        out = nn.Dense(size, kernel_init=nn.initializers.zeros, name="out")(nn.LayerNorm()(h))
        return out.reshape(x.shape)
