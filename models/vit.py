"""A small vision transformer as an embedder.

    (1)  embedding = LN(mean over the grid of E(x))·W + b

E is the encoder of models/vit_autoencoder.py: patches, fixed positions on their grid, blocks in which every patch sees
every other (2010.11929 §3.1, with a mean in place of the class token: its app. D.3).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.embedder import EmbeddingNet, check_images
from models.vit_autoencoder import ViTEncoder


class ViT(EmbeddingNet):
    """Eq. (1), of images [B, H, W, C] of any size; zeros fill up the last patches."""

    patch: int = 4  # side of a patch
    width: int = 128  # of a token
    depth: int = 4  # blocks
    heads: int = 4  # of attention; must divide `width`

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], train: bool = False) -> Float[Array, "b {self.features}"]:
        check_images(x, "a ViT")
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.patch), (0, -x.shape[2] % self.patch), (0, 0)))
        same = {name: getattr(self, name) for name in ("patch", "width", "depth", "heads", "dtype", "remat")}
        grid = ViTEncoder(**same, name="encoder")(x, self.width)
        return nn.Dense(self.features, name="out")(nn.LayerNorm(name="last")(jnp.mean(grid, axis=(1, 2))))
