"""A 3×3 convolution whose gradient is quick inside a scan on a CPU too.

    (1)  y[p] = Σ_δ x[p + δ]·k[δ],  δ over the window, zeros around the image
    (2)  dy = Σ_δ dx[p + δ]·k[δ] + Σ_δ x[p + δ]·dk[δ]

XLA's CPU backend has a fast kernel for (1) alone. It brings the two convolutions that (2) transposes to into that form
in a program's outermost computation, but not in the body of a loop, where they are many times slower. Blocks are
scanned (models/stack.py); so on a CPU (2) is the sum of matrix products that it is written as. Measured by `python
benchmarks/convolution.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from models.remat import named

Image = Float[Array, "b h w c"]
Kernel = Float[Array, "i j c d"]


def _convolved(x: Image, kernel: Kernel) -> Float[Array, "b h w d"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _products(x: Image, kernel: Kernel) -> Float[Array, "b h w d"]:
    """Eq. (1), term by term."""
    rows, columns, channels, out = kernel.shape
    b, height, width, _ = x.shape
    around = ((0, 0), ((rows - 1) // 2, rows // 2), ((columns - 1) // 2, columns // 2), (0, 0))
    wide = jnp.promote_types(x.dtype, jnp.float32)  # in which the convolution itself, too, takes its sums
    padded, kernel_wide = jnp.pad(x, around).astype(wide), kernel.astype(wide)
    y = jnp.zeros((b * height * width, out), wide)
    for i in range(rows):
        for j in range(columns):
            shifted = padded[:, i : i + height, j : j + width].reshape(-1, channels)
            y = y + shifted @ kernel_wide[i, j]
    return y.astype(x.dtype).reshape(b, height, width, out)


def _linear(x: Image, kernel: Kernel) -> Float[Array, "b h w d"]:
    return jax.lax.platform_dependent(x, kernel, cpu=_products, default=_convolved)


@jax.custom_jvp
def convolution(x: Image, kernel: Kernel) -> Float[Array, "b h w d"]:
    """Eq. (1), of images [B, H, W, C] with a kernel [I, J, C, D], stride 1; derivatives of any order, either mode."""
    return _convolved(x, kernel)


@convolution.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    # Checkpointed, for else the backward pass would be handed all shifted copies of x instead of x.
    slope = jax.checkpoint(lambda x, k, dx, dk: _linear(dx, k) + _linear(x, dk), prevent_cse=False)
    return convolution(*primals), slope(*primals, *tangents)


class Conv3x3(nn.Module):
    """Eq. (1), with a bias; parameters and their names are those of `nn.Conv`. For blocks that are scanned."""

    features: int
    dtype: str | None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        if not self.use_bias:
            return named(convolution(*promote_dtype(x, kernel, dtype=self.dtype)), "conv")
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return named(convolution(x, kernel), "conv") + bias.reshape(1, 1, 1, -1)
