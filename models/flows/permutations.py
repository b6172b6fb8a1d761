"""Permutations of the last axis: log|det| is 0.

reverse     z_i = x_{D−1−i}                                  what MAF puts between layers
fixed       z_i = x_{π(i)}, π drawn once                     held as int32, which is never trained, and saved with
                                                             the run
even_odd    even places first, then odd ones                 NICE 1410.8516 §5: halves become even and odd pixels
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params, zeros
from models.model import Condition


@dataclass(frozen=True, kw_only=True)
class Reverse(Bijection):
    """An axis backwards, by default the last; its own inverse."""

    axis: int = -1  # counted from the end: −2 is the order of tokens

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return jnp.flip(x, self.axis), zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return jnp.flip(z, self.axis), zeros(z)


@dataclass(frozen=True, kw_only=True)
class FixedPermutation(Bijection):
    """A permutation drawn at the start."""

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return {"order": jax.random.permutation(key, x.shape[-1]).astype(jnp.int32)}

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return jnp.take(x, params["order"], axis=-1), zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return jnp.take(z, jnp.argsort(params["order"]), axis=-1), zeros(z)


@dataclass(frozen=True, kw_only=True)
class EvenOddFirst(Bijection):
    """Even places, then odd ones."""

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1), zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        even = (z.shape[-1] + 1) // 2
        x = jnp.zeros_like(z).at[..., 0::2].set(z[..., :even]).at[..., 1::2].set(z[..., even:])
        return x, zeros(z)
