"""The network of DeepID (Sun, Wang, Tang: Deep Learning Face Representation from Predicting 10,000 Classes, CVPR 2014).

    (1)  h_i = pool(relu(h_i−1 ∗ A_i + a_i)), i = 1, 2, 3:  A of 4×4, 3×3, 3×3 to 20, 40, 60 channels;  pool is the
         maximum over 2×2 places                                                              §3.1, fig. 2
    (2)  h_4 = relu(h_3 ∗ A_4 + a_4), 2×2, 80 channels
    (3)  embedding = relu(h_3·W_3 + h_4·W_4 + b), 160 numbers: of two scales                  §3.1

Two differences from the paper. All weights of a convolution are shared over the image; there, in the higher layers,
over regions of it. And sides are kept by convolutions and halved rounding up, so that small images fit; there, edges
are cut off, and the images are 39×31 or 31×31.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.embedder import EmbeddingNet, check_images
from models.model import wide


class DeepID(EmbeddingNet):
    """Eq. (1)–(3), of images [B, H, W, C] of any size. No blocks are repeated: `remat` has nothing to act on."""

    features: int = 160
    width: float = 1.0  # channels over the paper's

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], train: bool = False) -> Float[Array, "b {self.features}"]:
        check_images(x, "DeepID")

        def conv(h: Array, channels: int, size: int, name: str) -> Array:
            return nn.relu(nn.Conv(round(self.width * channels), (size, size), dtype=self.dtype, name=name)(h))

        h = x
        for i, (channels, size) in enumerate(((20, 4), (40, 3), (60, 3)), start=1):
            h = nn.max_pool(conv(h, channels, size, f"conv{i}"), (2, 2), (2, 2), "SAME")
        scales = [y.reshape(y.shape[0], -1) for y in (h, conv(h, 80, 2, "conv4"))]
        return nn.relu(nn.Dense(self.features, name="out")(wide(jnp.concatenate(scales, axis=1))))
