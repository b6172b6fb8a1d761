"""The U-Net of DDPM and the score SDEs.

    (1)  residual block   y = conv₁(silu(GN(h))),  y ← (1 + a(c))·GN(y) + b(c)  [or y ← GN(y + b(c))],
                          h ← shortcut(h) + conv₂(dropout(silu(y)))             DDPM, 2006.11239 app. B; 2102.09672 §3
    (2)  attention        h ← h + W·softmax(QKᵀ/√d)V over all pixels, one head of all channels in DDPM
    (3)  levels           resolution r_k = ⌈r/2ᵏ⌉ with `width·multipliers[k]` channels: blocks, then down;
                          on the way up one block more a level, each fed the matching skip connection

Last layers of blocks and of the network start at zero. Any image of at least 8×8 fits: sizes are halved rounding up,
and the way up resizes to the size of the skip it meets.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.convolution import Conv3x3
from models.embedding import Conditioning
from models.model import Net, wide
from models.remat import named
from models.stack import Stack

Image = Float[Array, "b h w c"]


def group_norm(channels: int, name: str | None = None) -> nn.GroupNorm:
    """At most 32 groups, as in the papers, and always a divisor of the channels. Statistics in float32."""
    groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, name=name)


class Attention(nn.Module):
    """Self-attention over pixels, eq. (2)."""

    heads: int
    dtype: str | None

    @nn.compact
    def __call__(self, h: Image) -> Image:
        b, height, width, channels = h.shape
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(group_norm(channels)(h))
        q, k, v = jnp.split(qkv.reshape(b, height * width, self.heads, -1), 3, axis=-1)
        y = named(jax.nn.dot_product_attention(q, k, v), "attention").reshape(h.shape)
        out = nn.Dense(channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(y)
        return h + out.astype(h.dtype)


class ResBlock(nn.Module):
    """Residual block (1), then attention (2) where `heads` is not 0."""

    channels: int
    heads: int
    dropout: float
    scale_shift: bool
    dtype: str | None

    @nn.compact
    def __call__(self, h: Image, c: Float[Array, "b f"], train: bool = False) -> Float[Array, "b h w channels"]:
        y = nn.silu(group_norm(h.shape[-1], "norm1")(h))
        y = Conv3x3(self.channels, self.dtype, name="conv1")(y)
        bias = nn.Dense(self.channels * (1 + self.scale_shift), dtype=self.dtype, name="time")(nn.silu(c))
        bias = bias[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(bias, 2, axis=-1)
            y = group_norm(self.channels, "norm2")(y) * (1.0 + scale) + shift
        else:
            y = group_norm(self.channels, "norm2")(y + bias)
        y = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(y))
        y = Conv3x3(self.channels, self.dtype, nn.initializers.zeros, name="conv2")(y)
        if h.shape[-1] != self.channels:
            h = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(h)
        h = wide(h) + wide(y)
        return Attention(self.heads, self.dtype, name="attention")(h) if self.heads else h


class UpBlock(nn.Module):
    """`ResBlock` of h and a skip connection side by side."""

    block: ResBlock

    def __call__(
        self, h: Image, skip: Float[Array, "b h w _"], c: Float[Array, "b f"], train: bool = False
    ) -> Float[Array, "b h w channels"]:
        return self.block(jnp.concatenate([h, skip], axis=-1), c, train)


class UNet(Net):
    """U-Net over images [B, H, W, C]."""

    width: int = 64  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 2, 2)  # channels of each level over `width`; one level more halves the image
    blocks: int = 2  # residual blocks a level on the way down
    attention: tuple[int, ...] = (16,)  # image heights at which blocks attend
    heads: int = 1  # of every attention
    dropout: float = 0.0  # before the second convolution of a block, while training
    num_classes: int = 0  # classes to condition on; 0 is unconditional
    scale_shift: bool = True  # adaptive group norm; False adds the embedding, as DDPM does
    resample: Literal["conv", "mean"] = "conv"  # strided conv down and conv up, or mean pooling and nearest alone

    @nn.compact
    def __call__(
        self,
        x: Image,
        noise: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        interval: Float[Array, " b"] | None = None,
    ) -> Image:
        if min(x.shape[1:3]) < 8:
            raise ValueError(f"the U-Net takes images of at least 8x8, got {x.shape[1]}x{x.shape[2]}")
        c = Conditioning(4 * self.width, self.width, self.num_classes, name="conditioning")(noise, label, interval)

        def residual(channels: int, heads: int) -> ResBlock:
            return ResBlock(channels, heads, self.dropout, self.scale_shift, self.dtype, parent=None)

        def run(h: jax.Array, channels: int, depth: int, heads: int, name: str) -> tuple[jax.Array, list[jax.Array]]:
            h, every = Stack(residual(channels, heads), depth, self.remat, every=True, name=name)(h, c, train=train)
            return h, list(every if every is not None else ())

        def climb(h: jax.Array, channels: int, skips: list[jax.Array], heads: int, name: str) -> jax.Array:
            block = UpBlock(residual(channels, heads), parent=None)
            return Stack(block, len(skips), self.remat, name=name)(h, c, each=jnp.stack(skips), train=train)[0]

        h = wide(nn.Conv(self.width, (3, 3), dtype=self.dtype, name="in")(x))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = self.down(h, level)
                skips.append(h)
            channels = multiplier * self.width
            heads = self.heads if h.shape[1] in self.attention else 0
            # Blocks of one shape are one run: the first joins the rest where the width does not change.
            first = 1 if h.shape[-1] != channels else 0
            for depth, part in ((first, "widen"), (self.blocks - first, "same")):
                if depth:
                    h, outputs = run(h, channels, depth, heads, f"down{level}_{part}")
                    skips.extend(outputs)

        h, _ = run(h, h.shape[-1], 1, self.heads, "middle1")
        h, _ = run(h, h.shape[-1], 1, 0, "middle2")

        for level, multiplier in reversed(tuple(enumerate(self.multipliers))):
            heads = self.heads if skips[-1].shape[1] in self.attention else 0
            channels = multiplier * self.width
            met = [skips.pop() for _ in range(self.blocks + 1)]
            # As on the way down: between the first block and the last, all are of one shape.
            for part, own in (("first", met[:1]), ("same", met[1:-1]), ("last", met[-1:])):
                if own:
                    h = climb(h, channels, own, heads, f"up{level}_{part}")
            if level:
                h = self.up(h, skips[-1].shape[1:3], level)

        h = nn.silu(group_norm(h.shape[-1], "norm_out")(h))
        return nn.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros, name="out")(h)

    def down(self, h: Image, level: int) -> Float[Array, "b half_h half_w c"]:
        """Halves the image, rounding up."""
        if self.resample == "conv":
            return wide(nn.Conv(h.shape[-1], (3, 3), 2, dtype=self.dtype, name=f"down{level}")(h))
        return nn.avg_pool(h, (2, 2), (2, 2), "SAME", count_include_pad=False)

    def up(self, h: Image, size: tuple[int, ...], level: int) -> Float[Array, "b twice_h twice_w c"]:
        """Nearest-neighbour resize to `size`, then a convolution unless `resample` is mean."""
        h = jax.image.resize(h, (h.shape[0], *size, h.shape[-1]), "nearest")
        if self.resample == "conv":
            h = wide(nn.Conv(h.shape[-1], (3, 3), dtype=self.dtype, name=f"up{level}")(h))
        return h
