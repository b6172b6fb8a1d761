"""Encoders and decoders of images by transformers: patches·W + positions, blocks in which every patch sees every other.

ViT-VQGAN's (2110.04627 §3.1).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.autoencoder import Decoder, Encoder, Grid, Half, Image
from models.model import wide
from models.patches import check_sides, patched, positions, unpatched
from models.transformer import Transformer


class VisionTransformer(Half):
    """What its two have in common: nothing but matrix products, which is what a CPU, too, is quick at."""

    width: int = 128
    depth: int = 2  # blocks
    heads: int = 4  # of attention; must divide `width`
    patch: int = 4  # side of a patch

    @property
    def factor(self) -> int:
        return self.patch

    def blocks(self, x: Grid) -> Float[Array, "b rows columns width"]:
        """Patches to vectors, positions, and the blocks; called inside `__call__`."""
        if self.width % 4:
            raise ValueError(f"positions on a grid need a width that 4 divides, not {self.width}")
        h = wide(nn.Dense(self.width, dtype=self.dtype, name="in")(x))
        b, rows, columns, _ = h.shape
        table = jnp.asarray(positions(rows, columns, self.width), h.dtype)
        layers = Transformer(
            **{name: getattr(self, name) for name in ("width", "depth", "heads", "dtype", "remat")},
            bidirectional=True,
            positions="none",
        )
        return layers(h.reshape(b, rows * columns, -1) + table[None])[0].reshape(h.shape)


class ViTEncoder(VisionTransformer, Encoder):
    """Patches in."""

    @nn.compact
    def __call__(self, x: Image, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        check_sides(x, self.patch, f"an encoder with patches of {self.patch}x{self.patch}")
        return nn.Dense(features, name="last")(self.blocks(patched(x, self.patch)))


class ViTDecoder(VisionTransformer, Decoder):
    """Patches out."""

    @nn.compact
    def __call__(self, x: Grid, features: int, train: bool = False) -> Float[Array, "b _ _ features"]:
        return unpatched(nn.Dense(self.patch**2 * features, name="last")(self.blocks(x)), self.patch)
