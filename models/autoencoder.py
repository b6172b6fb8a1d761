"""The contract of encoders and decoders of images, to a grid of vectors and back; and those of convolutions.

    encoder   n convolutions 4×4 of stride 2, each with a relu; a convolution 3×3; residual blocks
              h ← h + conv₁ₓ₁(relu(conv₃ₓ₃(relu(h)))); relu; a convolution 1×1 to as many numbers as are asked for
    decoder   the convolution 3×3, the blocks and the relu first, then n transposed convolutions   1711.00937 §4.1

All widths are fields; how many numbers a place or a pixel has is asked for by what stands at the other end.
Transformers are models/vit_autoencoder.py.
"""

from abc import ABC, abstractmethod

from flax import linen as nn
from jaxtyping import Array, Float

from models.convolution import Conv3x3
from models.model import wide
from models.patches import check_sides
from models.stack import Stack

Image = Float[Array, "b h w c"]
Grid = Float[Array, "b rows columns f"]


class Half(nn.Module, ABC):
    """Base of all. `dtype` and `remat` are as the experiment says where they are None."""

    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of the repeated blocks, models/remat.py

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


class Convolutional(Half):
    """What the paper's two have in common, with its sizes."""

    width: int = 256  # channels
    hidden: int = 0  # channels within a residual block; 0: as many
    depth: int = 2  # residual blocks
    reduction: int = 4  # how many times smaller the grid is than the image, a power of 2

    @property
    def factor(self) -> int:
        return self.reduction

    @property
    def halvings(self) -> int:
        if self.factor < 2 or self.factor & (self.factor - 1):
            raise ValueError(f"strides of 2 make a factor that is a power of 2, not {self.factor}")
        return self.factor.bit_length() - 1

    def blocks(self, h: Image) -> Float[Array, "b h w width"]:
        """A convolution, the blocks and the relu behind them; called inside `__call__`."""
        h = wide(nn.Conv(self.width, (3, 3), dtype=self.dtype, name="in")(h))
        if self.depth:
            block = ResidualBlock(self.hidden or self.width, self.dtype, parent=None)
            h, _ = Stack(block, self.depth, self.remat, name="blocks")(h)
        return nn.relu(h)


class ConvEncoder(Convolutional, Encoder):
    """Strides, then blocks."""

    @nn.compact
    def __call__(self, x: Image, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        check_sides(x, self.factor, f"an encoder that halves {self.halvings} times")
        h = x
        for i in range(self.halvings):
            channels = self.width // 2 if i == 0 and self.halvings > 1 else self.width
            h = nn.relu(nn.Conv(channels, (4, 4), 2, dtype=self.dtype, name=f"down{i}")(h))
        return nn.Dense(features, name="last")(self.blocks(h))


class ConvDecoder(Convolutional, Decoder):
    """Blocks, then strides."""

    @nn.compact
    def __call__(self, x: Grid, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        h = self.blocks(x)
        for i in range(self.halvings - 1):
            channels = self.width // 2 if i == self.halvings - 2 else self.width
            h = nn.relu(nn.ConvTranspose(channels, (4, 4), (2, 2), dtype=self.dtype, name=f"up{i}")(h))
        return nn.ConvTranspose(features, (4, 4), (2, 2), name="last")(wide(h))
