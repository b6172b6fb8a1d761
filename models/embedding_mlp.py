"""A residual MLP as an embedder: nothing but matrix products, which is what a CPU is quick at.

(1)  h = LN(x·W + b), x in one row
(2)  block: h ← h + drop(silu(LN(h)·U + u))·V + v;  V starts at zero, so every block starts as the identity
(3)  embedding = LN(h)·O + o
"""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from models.embedder import EmbeddingNet
from models.model import wide
from models.stack import Stack


class EmbeddingBlock(nn.Module):
    """Eq. (2)."""

    hidden: int
    dropout: float
    dtype: str | None

    @nn.compact
    def __call__(self, h: Float[Array, "b width"], train: bool = False) -> Float[Array, "b width"]:
        y = nn.silu(nn.Dense(self.hidden, dtype=self.dtype, name="up")(nn.LayerNorm(name="norm")(h)))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        down = nn.Dense(h.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="down")
        return h + down(y).astype(h.dtype)


class EmbeddingMLP(EmbeddingNet):
    """Eq. (1)–(3), of arrays [B, …] of any shape."""

    width: int = 256  # of the residual stream
    depth: int = 2  # blocks
    expansion: int = 2  # hidden width of a block over `width`
    dropout: float = 0.0  # of the hidden layers, while training

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], train: bool = False) -> Float[Array, "b {self.features}"]:
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(x.reshape(x.shape[0], math.prod(x.shape[1:])))
        h = nn.LayerNorm(name="first")(wide(h))
        block = EmbeddingBlock(self.expansion * self.width, self.dropout, self.dtype, parent=None)
        h, _ = Stack(block, self.depth, self.remat, name="blocks")(h, train=train)
        return nn.Dense(self.features, name="out")(nn.LayerNorm(name="last")(h))
