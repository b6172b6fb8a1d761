"""The improved residual networks (IR) of ArcFace.

    (1)  h = φ(BN(x ∗ A)), then stages k = 0 … 3 of `width`·2ᵏ channels, each of n_k units     1801.07698v1 §3.2
    (2)  unit: h ← s(h) + BN(φ(BN(BN(h) ∗ B)) ∗ C).  In a stage's first unit, C is of stride 2 and s(h) = BN(h ∗₂ D), D
         1×1; in all others s(h) = h
    (3)  embedding = BN'(drop(BN(h))·W + b), of all places and channels; BN' has no scale
    (4)  BN(y) = g⊙(y − μ)/√(σ² + 10⁻⁵) + c.  In training μ and σ² are the batch's, over all devices; otherwise they are
         running means, m ← 0.9·m + 0.1·(the batch's), in the collection `batch_stats`         1502.03167 alg. 1, 2

φ is models/activations.py's (1). A, B and C are 3×3; convolutions have no biases and start normal with variance
2/fan-out. The depth in a network's name counts A, B, C and W. Statistics and sums are float32. Sides are halved,
rounding up. A stage's units after its first are one scan (models/stack.py).

In two things the authors' PyTorch code differs: its running variances are the unbiased ones, and the statistics are of
each device's own part of the batch.
"""

from collections.abc import Callable
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from models.activations import PReLU
from models.convolution import Conv3x3, Image
from models.embedder import EmbeddingNet, check_images
from models.model import wide
from models.stack import Stack

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}  # n_k of (1)
INITIAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def normed(train: bool, dtype: str | None, scale: bool = True) -> Callable[[str, Array], Array]:
    """Eq. (4), for a name and what is to be normalised; called inside `__call__`."""
    common = {"momentum": 0.9, "epsilon": 1e-5, "use_scale": scale, "dtype": dtype}
    return lambda name, y: nn.BatchNorm(not train, **common, name=name)(y)


def convolved(
    name: str, x: Image, channels: int, stride: int, dtype: str | None, side: int = 3
) -> Float[Array, "b _ _ {channels}"]:
    """A convolution outside of scans, its windows centred on every `stride`-th place; called inside `__call__`."""
    around = side // 2
    conv = nn.Conv(channels, (side, side), stride, around, use_bias=False, dtype=dtype, kernel_init=INITIAL, name=name)
    return conv(x)


class FirstUnit(nn.Module):
    """Eq. (2) of stride 2."""

    channels: int
    dtype: str | None

    @nn.compact
    def __call__(self, h: Image, train: bool = False) -> Float[Array, "b half_h half_w {self.channels}"]:
        norm = normed(train, self.dtype)
        y = norm("norm2", convolved("conv1", norm("norm1", h), self.channels, 1, self.dtype))
        y = norm("norm3", convolved("conv2", PReLU(name="prelu")(y), self.channels, 2, self.dtype))
        h = norm("norm_shortcut", convolved("shortcut", h, self.channels, 2, self.dtype, side=1))
        return wide(h) + wide(y)


class Unit(nn.Module):
    """Eq. (2) of stride 1."""

    dtype: str | None

    @nn.compact
    def __call__(self, h: Image, train: bool = False) -> Image:
        norm, channels = normed(train, self.dtype), h.shape[-1]
        y = norm("norm2", Conv3x3(channels, self.dtype, INITIAL, False, name="conv1")(norm("norm1", h)))
        y = norm("norm3", Conv3x3(channels, self.dtype, INITIAL, False, name="conv2")(PReLU(name="prelu")(y)))
        return h + y.astype(h.dtype)


class IResNet(EmbeddingNet):
    """Eq. (1)–(4), of images [B, H, W, C] of any size; the paper's are 112×112×3."""

    depth: Literal[18, 34, 50, 100] = 50  # convolutions one after another, and the last product
    width: int = 64  # channels of the stem and the first stage
    dropout: float = 0.0  # of what the last product reads, while training

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], train: bool = False) -> Float[Array, "b {self.features}"]:
        check_images(x, "IResNet")
        norm = normed(train, self.dtype)
        h = wide(PReLU(name="prelu")(norm("norm_in", convolved("in", x, self.width, 1, self.dtype))))
        for k, units in enumerate(UNITS[self.depth]):
            h = FirstUnit(2**k * self.width, self.dtype, name=f"first{k}")(h, train)
            h, _ = Stack(Unit(self.dtype, parent=None), units - 1, self.remat, name=f"units{k}")(h, train=train)
        h = normed(train, None)("norm_last", h).reshape(h.shape[0], -1)
        h = nn.Dense(self.features, name="out")(nn.Dropout(self.dropout, deterministic=not train)(h))
        return normed(train, None, scale=False)("norm_out", h)
