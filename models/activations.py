"""Activations by name, and those that have parameters.

(1)  PReLU(x) = x where x > 0, α·x elsewhere, an α a channel that starts at 1/4               1502.01852 eq. 1
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": nn.relu,
    "relu_squared": lambda x: jnp.square(nn.relu(x)),
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,  # 1606.08415's approximation
}


class PReLU(nn.Module):
    """Eq. (1), over the last axis."""

    @nn.compact
    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, x * slope.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)))
