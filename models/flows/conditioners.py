"""The networks that couplings ask: from the part of x that is seen to the parameters of what moves the rest.

Any Linen module with this call may stand for one. It is never inverted, so it may be anything; but nothing in it may
mix the examples of a batch (batch normalisation would: one example's density would depend on the others).
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.activations import ACTIVATIONS
from models.convolution import Conv3x3
from models.model import Condition, class_rows, label_of
from models.stack import Stack
from models.transformer import Transformer

Seen = Float[Array, "b *s c"]
zeros = nn.initializers.zeros
# A continuous flow differentiates its network forwards, for which cuDNN has no rule.
PLAIN: dict[str, Any] = {"bidirectional": True, "positions": "none", "initial": "xavier", "fused": False}


class Conditioner(nn.Module, ABC):
    """Base. `dtype` and `remat` are as the experiment says where they are None."""

    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of repeated blocks, models/remat.py

    @abstractmethod
    def __call__(self, seen: Seen, condition: Condition, count: int) -> Float[Array, "b *s {count}"]:
        """`count` numbers at each place of `seen`, whose last axis is channels.

        `condition` may hold `label` [B] and `given` [B, …, C], an image like the one seen.
        """


def _shown(seen: Seen, condition: Condition) -> Float[Array, "b *s d"]:
    """What is seen, and beside it what is given, as further channels."""
    given = (condition or {}).get("given")
    return seen if given is None else jnp.concatenate([seen, given.astype(seen.dtype)], axis=-1)


def _wide(seen: Seen) -> Any:
    """What a residual stream is kept in, whatever blocks compute in."""
    return jnp.promote_types(seen.dtype, jnp.float32)


class Label(nn.Module):
    """A row of a table for each class and one for "no class", as wide as `h`, broadcast over its places."""

    num_classes: int

    @nn.compact
    def __call__(self, h: Float[Array, "b *s c"], label: Int[Array, " b"] | None) -> Float[Array, "b *_ c"]:
        index = class_rows(label, h.shape[0], self.num_classes)
        row = nn.Embed(self.num_classes + 1, h.shape[-1], name="label")(index)
        return row.reshape(h.shape[0], *(1,) * (h.ndim - 2), -1)


class MLPConditioner(Conditioner):
    """Dense layers over all that is seen, flattened: vectors and small images."""

    width: int = 256  # of a hidden layer
    depth: int = 2  # hidden layers
    activation: Literal["relu", "silu", "tanh", "gelu"] = "relu"
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    @nn.compact
    def __call__(self, seen: Seen, condition: Condition, count: int) -> Float[Array, "b *s {count}"]:
        places = seen.shape[1:-1]
        shown = _shown(seen, condition)
        h = shown.reshape(shown.shape[0], math.prod(shown.shape[1:]))
        for i in range(self.depth):
            h = nn.Dense(self.width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name=f"hidden_{i}")(h)
            if i == 0 and self.num_classes:
                h = h + Label(self.num_classes, name="class")(h, label_of(condition))
            h = ACTIVATIONS[self.activation](h)
        out = nn.Dense(math.prod(places) * count, kernel_init=zeros, dtype=self.dtype, name="out")(h)
        return out.reshape(seen.shape[0], *places, count)


class ConvConditioner(Conditioner):
    """Glow's: 3×3, 1×1 and 3×3 convolutions, the last of them zero (1807.03039 §3.3, §5)."""

    width: int = 512
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    @nn.compact
    def __call__(self, seen: Seen, condition: Condition, count: int) -> Float[Array, "b *s {count}"]:
        normal = nn.initializers.normal(0.05)
        h = Conv3x3(self.width, self.dtype, normal, name="in")(_shown(seen, condition))
        if self.num_classes:
            h = h + Label(self.num_classes, name="class")(h, label_of(condition))
        h = nn.relu(nn.Dense(self.width, kernel_init=normal, dtype=self.dtype, name="mix")(nn.relu(h)))
        return Conv3x3(count, self.dtype, zeros, name="out")(h)


class _ResidualBlock(nn.Module):
    """h ← h + conv(relu(LN(conv(relu(LN(h)))))): LN over channels, where RealNVP has batch normalisation."""

    width: int
    dtype: str | None

    @nn.compact
    def __call__(self, h: Float[Array, "b y x c"], train: bool = False) -> Float[Array, "b y x c"]:
        y = Conv3x3(self.width, self.dtype, name="first")(nn.relu(nn.LayerNorm()(h)))
        return h + Conv3x3(self.width, self.dtype, name="second")(nn.relu(nn.LayerNorm()(y))).astype(h.dtype)


class ResNetConditioner(Conditioner):
    """RealNVP's: a convolution, residual blocks, a 1×1 convolution that begins at zero (1605.08803 §3.5, §4.1)."""

    width: int = 64  # feature maps
    depth: int = 8  # residual blocks
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    @nn.compact
    def __call__(self, seen: Seen, condition: Condition, count: int) -> Float[Array, "b *s {count}"]:
        h = Conv3x3(self.width, self.dtype, name="in")(_shown(seen, condition)).astype(_wide(seen))
        if self.num_classes:
            h = h + Label(self.num_classes, name="class")(h, label_of(condition))
        h, _ = Stack(_ResidualBlock(self.width, self.dtype, parent=None), self.depth, self.remat, name="blocks")(h)
        return nn.Dense(count, kernel_init=zeros, dtype=self.dtype, name="out")(nn.relu(nn.LayerNorm()(h)))


class TransformerConditioner(Conditioner):
    """A transformer whose tokens are the places of what is seen; of a vector, its numbers (Jet 2412.15129)."""

    width: int = 128  # of a token
    depth: int = 2  # blocks
    heads: int = 4
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    @nn.compact
    def __call__(self, seen: Seen, condition: Condition, count: int) -> Float[Array, "b *s {count}"]:
        shown = _shown(seen, condition)
        tokens = shown.reshape(shown.shape[0], -1, shown.shape[-1]) if shown.ndim > 2 else shown[..., None]
        h = nn.Dense(self.width, dtype=self.dtype, name="embed")(tokens).astype(_wide(seen))
        places = self.param("positions", nn.initializers.normal(0.02), (1, tokens.shape[1], self.width))
        h = h + places
        if self.num_classes:
            h = h + Label(self.num_classes, name="class")(h, label_of(condition))
        sizes = {name: getattr(self, name) for name in ("width", "depth", "heads", "dtype", "remat")}
        h, _ = Transformer(**sizes, **PLAIN, name="transformer")(h)
        if shown.ndim > 2:
            out = nn.Dense(count, kernel_init=zeros, dtype=self.dtype, name="out")(h)
            return out.reshape(*seen.shape[:-1], count)
        # A vector's two parts need not be equally long: its tokens are read as one.
        return nn.Dense(count, kernel_init=zeros, dtype=self.dtype, name="out")(h.reshape(h.shape[0], -1))
