"""Encoders and decoders of images: to a grid of vectors, and back.

    convolutional   n convolutions 4×4 of stride 2, then residual blocks h ← h + conv₁ₓ₁(relu(conv₃ₓ₃(relu(h))));
                    the decoder has the blocks first, then n transposed convolutions          1711.00937 §4.1
    transformer     patches·W + positions, blocks in which every patch sees every other       2110.04627 §3.1

All widths are fields; how many numbers a place or a pixel has is asked for by what stands at the other end.
"""

from abc import ABC, abstractmethod

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.convolution import Conv3x3
from models.patches import check_sides, patched, positions, unpatched
from models.stack import Stack
from models.transformer import Transformer

Image = Float[Array, "b h w c"]
Grid = Float[Array, "b rows columns f"]


class Half(nn.Module, ABC):
    """Base of both. `dtype` and `remat` are as the experiment says where they are None."""

    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of the repeated blocks, see models/stack.py

    @property
    @abstractmethod
    def factor(self) -> int:
        """How many times smaller than the image, along a side, the grid is."""

    @abstractmethod
    def __call__(self, x: Grid, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        """In float32, so many numbers a place or a pixel."""


class Encoder(Half):
    """Base: images to grids."""


class Decoder(Half):
    """Base: grids to images."""


class ResidualBlock(nn.Module):
    """As above."""

    hidden: int
    dtype: str | None

    @nn.compact
    def __call__(self, h: Image, train: bool = False) -> Image:
        y = Conv3x3(self.hidden, self.dtype, name="conv")(nn.relu(h))
        return h + nn.Dense(h.shape[-1], dtype=self.dtype, name="out")(nn.relu(y)).astype(h.dtype)


def residual_blocks(width: int, hidden: int, depth: int, dtype: str | None, remat: str | None, h: Image) -> Image:
    """The blocks and the relu behind them; called inside a module."""
    if depth:
        h, _ = Stack(ResidualBlock(hidden or width, dtype, parent=None), depth, remat, name="blocks")(h)
    return nn.relu(h)


def _check_factor(factor: int) -> int:
    """How often it halves."""
    if factor < 2 or factor & (factor - 1):
        raise ValueError(f"strides of 2 make a factor that is a power of 2, not {factor}")
    return factor.bit_length() - 1


class ConvEncoder(Encoder):
    """The paper's, with its sizes."""

    width: int = 256  # channels
    hidden: int = 0  # channels within a residual block; 0: as many
    depth: int = 2  # residual blocks
    reduction: int = 4  # how many times smaller the grid is, a power of 2

    @property
    def factor(self) -> int:
        return self.reduction

    @nn.compact
    def __call__(self, x: Image, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        times = _check_factor(self.factor)
        check_sides(x, self.factor, f"an encoder that halves {times} times")
        h = x
        for i in range(times):
            channels = self.width // 2 if i == 0 and times > 1 else self.width
            h = nn.Conv(channels, (4, 4), 2, dtype=self.dtype, name=f"down{i}")(h if i == 0 else nn.relu(h))
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="in")(nn.relu(h)).astype(jnp.float32)
        h = residual_blocks(self.width, self.hidden, self.depth, self.dtype, self.remat, h)
        return nn.Dense(features, name="last")(h)


class ConvDecoder(Decoder):
    """The paper's, with its sizes."""

    width: int = 256  # channels
    hidden: int = 0  # channels within a residual block; 0: as many
    depth: int = 2  # residual blocks
    reduction: int = 4  # how many times larger the image is, a power of 2

    @property
    def factor(self) -> int:
        return self.reduction

    @nn.compact
    def __call__(self, x: Grid, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        times = _check_factor(self.factor)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="in")(x).astype(jnp.float32)
        h = residual_blocks(self.width, self.hidden, self.depth, self.dtype, self.remat, h)
        for i in range(times - 1):
            channels = self.width // 2 if i == times - 2 else self.width
            h = nn.relu(nn.ConvTranspose(channels, (4, 4), (2, 2), dtype=self.dtype, name=f"up{i}")(h))
        return nn.ConvTranspose(features, (4, 4), (2, 2), name="last")(h.astype(jnp.float32))


def _attended(width: int, depth: int, heads: int, dtype: str | None, remat: str | None, h: Grid, train: bool) -> Grid:
    """Positions and blocks; called inside a module."""
    b, rows, columns, _ = h.shape
    placed = h.reshape(b, rows * columns, width) + jnp.asarray(positions(rows, columns, width), jnp.float32)[None]
    layers = Transformer(
        width=width, depth=depth, heads=heads, bidirectional=True, positions="none", dtype=dtype, remat=remat
    )
    return layers(placed, train=train)[0].reshape(b, rows, columns, width)


def _check_width(width: int) -> None:
    if width % 4:
        raise ValueError(f"positions on a grid need a width that 4 divides, not {width}")


class ViTEncoder(Encoder):
    """A vision transformer: nothing but matrix products, which is what a CPU, too, is quick at."""

    width: int = 128
    depth: int = 2  # blocks
    heads: int = 4  # of attention; must divide `width`
    patch: int = 4  # side of a patch

    @property
    def factor(self) -> int:
        return self.patch

    @nn.compact
    def __call__(self, x: Image, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        _check_width(self.width)
        check_sides(x, self.patch, f"an encoder with patches of {self.patch}x{self.patch}")
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(patched(x, self.patch)).astype(jnp.float32)
        h = _attended(self.width, self.depth, self.heads, self.dtype, self.remat, h, train)
        return nn.Dense(features, name="last")(h)


class ViTDecoder(Decoder):
    """The same backwards."""

    width: int = 128
    depth: int = 2  # blocks
    heads: int = 4  # of attention; must divide `width`
    patch: int = 4  # side of a patch

    @property
    def factor(self) -> int:
        return self.patch

    @nn.compact
    def __call__(self, x: Grid, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        _check_width(self.width)
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(x).astype(jnp.float32)
        h = _attended(self.width, self.depth, self.heads, self.dtype, self.remat, h, train)
        return unpatched(nn.Dense(self.patch**2 * features, name="last")(h), self.patch)
