"""The field of FFJORD on vectors (1810.01367, its published code): layers whose output time scales and shifts.

    (1)  h ← act((W·h + b)·sigmoid(a·t + d) + c·t),  the last layer without act

Smooth, and little besides matrix products, so that an integrator may call it often: five operations a layer, where the
residual MLP of models/mlp.py has some twenty. t is the number that the net is told as the noise level.
"""

import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.activations import ACTIVATIONS
from models.model import Net


class ConcatSquash(Net):
    """Eq. (1) over the flattened input. It starts at zero: the flow of an untrained field is the identity."""

    width: int = 64  # of a hidden layer
    depth: int = 3  # hidden layers
    activation: Literal["tanh", "silu", "gelu"] = "tanh"  # smooth: the log-determinant is an integral of derivatives

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *s"],
        noise: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        interval: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b *s"]:
        if interval is not None:
            raise ValueError("a ConcatSquash knows of no jumps; an MLP, a UNet and a DiT do")
        size = math.prod(x.shape[1:])
        t, h = noise[:, None].astype(x.dtype), x.reshape(x.shape[0], size)
        for i in range(self.depth + 1):
            last = i == self.depth
            init = nn.initializers.zeros if last else nn.initializers.lecun_normal()
            out = nn.Dense(size if last else self.width, kernel_init=init, dtype=self.dtype, name=f"layer_{i}")
            gate = nn.Dense(out.features, name=f"gate_{i}")
            shift = nn.Dense(out.features, use_bias=False, kernel_init=nn.initializers.zeros, name=f"shift_{i}")
            h = out(h) * nn.sigmoid(gate(t)) + shift(t)
            h = h if last else ACTIVATIONS[self.activation](h)
        return h.reshape(x.shape).astype(jnp.promote_types(x.dtype, jnp.float32))
