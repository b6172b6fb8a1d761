"""The residual networks of SphereFace.

    (1)  stage k = 0 … 3:  h ← φ(h ∗₂ A + a), a 3×3 convolution of stride 2 to `width`·2ᵏ channels, then n_k times (2)
                                                                                              1704.08063 table 2
    (2)  h ← h + φ(φ(h ∗ B) ∗ C), 3×3 convolutions
    (3)  embedding = h·W + b, h of all places and channels

φ is models/activations.py's (1). Nothing is normalised. As in the paper's code: A and W start uniform with variance
1/fan-in, with biases of 0; B and C normal(0.01), without biases. So a unit starts close to the identity. The depth in a
network's name counts its convolutions. Sides are halved rounding up. The units of a stage are one scan
(models/stack.py).
"""

from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from models.activations import PReLU
from models.convolution import Conv3x3, Image
from models.embedder import EmbeddingNet, check_images
from models.model import wide
from models.stack import Stack

UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}  # n_k of (1)


class ResidualUnit(nn.Module):
    """Eq. (2)."""

    dtype: str | None

    @nn.compact
    def __call__(self, h: Image, train: bool = False) -> Image:
        y = h
        for i in (1, 2):
            y = Conv3x3(h.shape[-1], self.dtype, nn.initializers.normal(0.01), use_bias=False, name=f"conv{i}")(y)
            y = PReLU(name=f"prelu{i}")(y)
        return h + y.astype(h.dtype)


class SphereFace(EmbeddingNet):
    """Eq. (1)–(3), of images [B, H, W, C] of any size; the paper's are 112×96×3."""

    depth: Literal[4, 10, 20, 36, 64] = 20  # convolutions
    width: int = 64  # channels of the first stage

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], train: bool = False) -> Float[Array, "b {self.features}"]:
        check_images(x, "SphereFace")
        h, init = x, nn.initializers.lecun_uniform()
        for k, units in enumerate(UNITS[self.depth]):
            # Padded by one on every side: SAME would put the windows of an even side one place further.
            down = nn.Conv(2**k * self.width, (3, 3), 2, 1, dtype=self.dtype, kernel_init=init, name=f"down{k}")
            h = wide(PReLU(name=f"prelu{k}")(down(h)))
            if units:
                h, _ = Stack(ResidualUnit(self.dtype, parent=None), units, self.remat, name=f"units{k}")(h)
        return nn.Dense(self.features, kernel_init=init, name="out")(h.reshape(h.shape[0], -1))
