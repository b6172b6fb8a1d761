"""Activations that have parameters.

(1)  PReLU(x) = x where x > 0, α·x elsewhere, an α a channel that starts at 1/4               1502.01852 eq. 1
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class PReLU(nn.Module):
    """Eq. (1), over the last axis."""

    @nn.compact
    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, x * slope.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)))
