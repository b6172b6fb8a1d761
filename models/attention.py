"""Attention; queries, keys and values are [B, T, heads, d].

    (1)  Attention(Q, K, V) = softmax(Q·Kᵀ/√d + mask)·V                                       1706.03762 eq. 1
    (2)  MultiHead(X, Y) = [head_1 … head_H]·W_o,  head_i = Attention(X·W_q, Y·W_k, Y·W_v)_i   1706.03762 §3.2.2
    (3)  rotary positions: (a, b) → (a·cos mθ_k − b·sin mθ_k, a·sin mθ_k + b·cos mθ_k) at place m, a and b the k-th
         numbers of the halves of a query or key, θ_k = 10000^(−2k/d)                          2104.09864 eq. 34
    (4)  a cache holds all keys and values so far: the next tokens' queries attend to them: nothing is computed twice

A masked score is a large finite number: with −∞ the softmax of a row with nothing to attend to would be NaN. Such a row
answers 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from models.remat import named

Tokens = Float[Array, "b t f"]
Heads = Float[Array, "b t heads d"]
Kept = Float[Array, "b s heads d"]
Mask = Bool[Array, "_ _ s"]  # [B, T, S]: where a query may look at a key; of B and T, 1 stands for all
# Keys and values. Heads are before tokens: what a head attends to is then one run of memory.
Cache = tuple[Float[Array, "layers b heads length d"], Float[Array, "layers b heads length d"]]


def attend(q: Heads, k: Kept, v: Kept, mask: Mask | None = None, causal: bool = False, fused: bool = False) -> Heads:
    """Eq. (1).

    Args:
      causal: a query looks at its own place and those before it; q and k are of equal length then.
      fused: by cuDNN's kernel on a GPU in half precision, where no mask is given. It has no forward-mode derivative.
    """
    if mask is None:
        implementation = "cudnn" if fused and _has_kernel(q) else None
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], is_causal=causal)
    return jnp.where(jnp.any(mask, axis=2)[:, :, None, None], out, 0.0)


def _has_kernel(q: Heads) -> bool:
    """Whether cuDNN has a kernel for it: half precision, heads of at most 128 in eights, NVIDIA's Ampere or later."""
    if jax.default_backend() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", "0"))  # an AMD card says gfx…
    recent = capability.replace(".", "").isdecimal() and float(capability) >= 8.0
    return recent and q.shape[1] > 1 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def rotary(x: Heads, first: int | Int[Array, ""] = 0) -> Heads:
    """Eq. (3), of tokens at the places `first`, `first` + 1, …; d is even."""
    half = x.shape[-1] // 2
    angles = (first + jnp.arange(x.shape[1]))[:, None] * 1e4 ** (-jnp.arange(half) / half)[None, :]
    cos, sin = (turn(angles)[None, :, None, :].astype(x.dtype) for turn in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def by_rows(layer: nn.Dense, y: Float[Array, "*b f"]) -> Float[Array, "*b g"]:
    """A dense layer of tokens as the rows of one matrix.

    The gradient of its kernel is then one product, not one over two axes, which XLA's CPU backend takes twice as long
    for.
    """
    return layer(y.reshape(-1, y.shape[-1])).reshape(*y.shape[:-1], -1)


class Attention(nn.Module):
    """Eq. (2) of X with itself."""

    width: int
    heads: int
    causal: bool = False
    rotary: bool = False
    bias: bool = True
    fused: bool = False
    dtype: str | None = None
    kernel_init: Any = nn.initializers.xavier_uniform()
    out_init: Any = nn.initializers.xavier_uniform()

    def setup(self) -> None:
        self.qkv = nn.Dense(3 * self.width, self.bias, dtype=self.dtype, kernel_init=self.kernel_init)
        self.out = nn.Dense(self.width, self.bias, dtype=self.dtype, kernel_init=self.out_init)

    def __call__(self, x: Tokens, mask: Mask | None = None) -> Tokens:
        """All of a sequence."""
        y = named(attend(*self._heads(x, 0), mask, self.causal, self.fused), "attention")
        return by_rows(self.out, y.reshape(x.shape))

    def step(self, x: Tokens, cache: Cache, layer: Int[Array, ""], index: Int[Array, ""]) -> tuple[Tokens, Cache]:
        """Eq. (4): the tokens at `index` and behind it, whose keys and values are written to row `layer`."""
        q, k, v = self._heads(x, index)
        # The whole cache is the carry of both loops, over layers and over time, so that this writes in place.
        where = [jnp.asarray(place, jnp.int32) for place in (layer, 0, 0, index, 0)]
        keys, values = (
            jax.lax.dynamic_update_slice(kept, new.swapaxes(1, 2)[None].astype(kept.dtype), where)
            for kept, new in zip(cache, (k, v), strict=True)
        )
        seen = jnp.arange(keys.shape[3])[None, None, :] <= (index + jnp.arange(x.shape[1]))[None, :, None]
        rows = (kept[layer].swapaxes(1, 2).astype(q.dtype) for kept in (keys, values))
        return by_rows(self.out, attend(q, *rows, mask=seen).reshape(x.shape)), (keys, values)

    def _heads(self, x: Tokens, first: int | Int[Array, ""]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values."""
        mixed = by_rows(self.qkv, x).astype(self.dtype or x.dtype)
        q, k, v = jnp.split(mixed.reshape(*x.shape[:2], 3 * self.heads, -1), 3, axis=2)
        return (rotary(q, first), rotary(k, first), v) if self.rotary else (q, k, v)


class CrossAttention(nn.Module):
    """Eq. (2) of X with another sequence, whose keys and values are computed once."""

    width: int
    heads: int
    bias: bool = True
    dtype: str | None = None
    kernel_init: Any = nn.initializers.xavier_uniform()
    out_init: Any = nn.initializers.xavier_uniform()

    def setup(self) -> None:
        self.q = nn.Dense(self.width, self.bias, dtype=self.dtype, kernel_init=self.kernel_init)
        self.kv = nn.Dense(2 * self.width, self.bias, dtype=self.dtype, kernel_init=self.kernel_init)
        self.out = nn.Dense(self.width, self.bias, dtype=self.dtype, kernel_init=self.out_init)

    def read(self, memory: Float[Array, "b s f"]) -> tuple[Kept, Kept]:
        """Keys and values."""
        mixed = by_rows(self.kv, memory).astype(self.dtype or memory.dtype)
        k, v = jnp.split(mixed.reshape(*memory.shape[:2], 2 * self.heads, -1), 2, axis=2)
        return k, v

    def weights(self, x: Tokens, k: Kept, mask: Mask | None = None) -> Float[Array, "b heads t s"]:
        """Where each query looks: the softmax of eq. (1) in float32, for pictures; 0 where there is nothing to see."""
        q = by_rows(self.q, x).astype(k.dtype).reshape(*x.shape[:2], self.heads, -1)
        scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5
        seen = True if mask is None else mask[:, None]
        return jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1) * seen

    def __call__(self, x: Tokens, k: Kept, v: Kept, mask: Mask | None = None) -> Tokens:
        q = by_rows(self.q, x).astype(k.dtype).reshape(*x.shape[:2], self.heads, -1)
        return by_rows(self.out, named(attend(q, k, v, mask), "attention").reshape(x.shape))
