"""The causal transformer of an autoregressive flow: a whole sequence at once, or its next token from a cache.

    (1)  h = x·W_in + position + class
    (2)  h ← h + Attention(LN(h)),  h ← h + MLP(LN(h)),  attention causal
    (3)  (α, μ)_{t+1} = h_t·W_out + b,  zero at the start                                       TarFlow 2412.06329

Each layer keeps the keys and values of the tokens it has seen: a step attends to them and runs everything else on one
token, where without that cache it would run the network on all of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.flows.conditioners import Label
from models.stack import Stack

Tokens = Float[Array, "b t f"]
Heads = Float[Array, "b t heads d"]
# Keys and values. Heads are before tokens: what a head attends to is then one run of memory.
Cache = tuple[Float[Array, "layers b heads length d"], Float[Array, "layers b heads length d"]]


def _by_rows(layer: nn.Dense, y: Tokens) -> Float[Array, "b t g"]:
    """The tokens as rows of one matrix, see models/dit.py."""
    return layer(y.reshape(-1, y.shape[-1])).reshape(*y.shape[:-1], -1)


class _Layer(nn.Module):
    """Pre-norm causal attention and MLP: on a whole sequence, or on its next token."""

    width: int
    heads: int
    expansion: int
    dtype: str | None

    def setup(self) -> None:
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        self.before_attention, self.before_mlp = nn.LayerNorm(), nn.LayerNorm()
        self.qkv, self.attended = dense(3 * self.width), dense(self.width)
        self.up, self.down = dense(self.expansion * self.width), dense(self.width)

    def __call__(self, h: Tokens, train: bool = False) -> Tokens:
        return self._rest(h, jax.nn.dot_product_attention(*self._heads(h), is_causal=True))

    def step(self, h: Tokens, cache: Cache, layer: Int[Array, ""], index: Int[Array, ""]) -> tuple[Tokens, Cache]:
        """The next token, [B, 1, width], at place `index`; its key and value are written to row `layer`."""
        q, k, v = self._heads(h)
        # The whole cache is the carry of both loops, so that this writes in place.
        keys, values = (
            jax.lax.dynamic_update_slice(kept, new.swapaxes(1, 2)[None], (layer, 0, 0, index, 0))
            for kept, new in zip(cache, (k, v), strict=True)
        )
        seen = (jnp.arange(keys.shape[3]) <= index)[None, None, None, :]
        rows = (kept[layer].swapaxes(1, 2) for kept in (keys, values))
        return self._rest(h, jax.nn.dot_product_attention(q, *rows, mask=seen)), (keys, values)

    def _heads(self, h: Tokens) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values."""
        qkv = _by_rows(self.qkv, self.before_attention(h)).astype(self.dtype or h.dtype)
        q, k, v = jnp.split(qkv.reshape(*h.shape[:2], 3 * self.heads, -1), 3, axis=2)
        return q, k, v

    def _rest(self, h: Tokens, attended: Heads) -> Tokens:
        h = h + _by_rows(self.attended, attended.reshape(h.shape)).astype(h.dtype)
        y = nn.gelu(_by_rows(self.up, self.before_mlp(h)), approximate=False)
        return h + _by_rows(self.down, y).astype(h.dtype)


class CausalTransformer(nn.Module):
    """What moves token t, read off the tokens before it."""

    width: int = 128  # of a token
    depth: int = 4  # layers
    heads: int = 2  # of attention; must divide `width`
    expansion: int = 4  # hidden width of the MLP over `width`
    num_classes: int = 0  # classes to condition on; 0 is unconditional
    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of the layers, see models/stack.py

    def __call__(self, x: Tokens, label: Int[Array, " b"] | None = None) -> tuple[Tokens, Tokens]:
        """(μ, α) of all tokens, which TarFlow's blocks move by; 0 for the first. In float32 or better.

        Raises:
          ValueError: the heads do not divide the width.
        """
        said, _ = self._read(x, label)
        # What is read at token t moves token t + 1.
        shifted = jnp.concatenate([jnp.zeros_like(said[:, :1]), said[:, :-1]], axis=1)
        alpha, mu = jnp.split(shifted, 2, axis=-1)
        return mu, alpha

    def step(
        self, x: Float[Array, "b f"], cache: Cache, index: Int[Array, ""], label: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b f"], Float[Array, "b f"], Cache]:
        """(μ, α) of the token after x, which is at place `index`, counted from 0, and the cache with x in it."""
        said, cache = self._read(x[:, None, :], label, (cache, index))
        alpha, mu = jnp.split(said[:, 0], 2, axis=-1)
        return mu, alpha, cache

    def empty(self, x: Tokens) -> Cache:
        """A cache for sequences like `x`, before their first token."""
        shape = (self.depth, x.shape[0], self.heads, x.shape[1], self.width // self.heads)
        cache = jnp.zeros(shape, self.dtype or jnp.promote_types(x.dtype, jnp.float32))
        return cache, cache

    @nn.compact
    def _read(
        self, x: Tokens, label: Any, past: tuple[Cache, Int[Array, ""]] | None = None
    ) -> tuple[Float[Array, "b t g"], Any]:
        """α and μ of the tokens after those of `x`: a whole sequence, or one token and what came before it."""
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide a causal transformer's width={self.width}")
        wide = jnp.promote_types(x.dtype, jnp.float32)
        length = x.shape[1] if past is None else past[0][0].shape[3]
        places = self.param("positions", nn.initializers.normal(0.01), (length, self.width))
        places = places if past is None else jax.lax.dynamic_slice_in_dim(places, past[1], 1)
        embed = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="embed")
        h = _by_rows(embed, x).astype(wide) + places[None].astype(wide)
        if self.num_classes:
            h = h + Label(self.num_classes, name="class")(h, label).astype(wide)
        layer = _Layer(self.width, self.heads, self.expansion, self.dtype, parent=None)
        layers = Stack(layer, self.depth, self.remat, name="layers")
        if past is None:
            (h, _), cache = layers(h), None
        else:
            cache, index = past

            def body(carry: Any, row: Any) -> tuple[Any, None]:
                return layer.apply({"params": row[0]}, *carry, row[1], index, method="step"), None

            rows = (layers.variables["params"]["blocks"], jnp.arange(self.depth))
            (h, cache), _ = jax.lax.scan(body, (h, cache), rows)
        out = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, name="out")
        return _by_rows(out, h).astype(wide), cache
