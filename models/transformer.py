"""The transformer, as encoder, decoder or both.

    (1)  post-norm  h ← LN(h + f(h))                                                         1706.03762 §3.1
         pre-norm   h ← h + f(LN(h)), and LN at the end                                      2002.04745 fig. 1
         f is attention to itself, attention to an encoder's outputs where there is one, then (2)
    (2)  FFN(x) = φ(x·W₁ + b₁)·W₂ + b₂,  φ = relu or gelu                                    1706.03762 eq. 2
         SwiGLU: (silu(x·W₁)⊙x·V)·W₂                                                         2002.05202 eq. 6
    (3)  RMSNorm(x) = g⊙x/√(mean x² + ε), in LN's place                                      1910.07467 eq. 4
    (4)  positions added to h_1: a table that is learned, or sin and cos of m·10000^(−2k/width)
                                                                                             1706.03762 §3.5
         or none, with rotated queries and keys in every layer (models/attention.py, eq. 3)

All blocks are one scan (models/stack.py).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.activations import ACTIVATIONS
from models.attention import Attention, Cache, CrossAttention, Kept, Mask, Tokens, by_rows
from models.backbone import Backbone, Lengths, Outputs, Sequence, State, within
from models.remat import named
from models.stack import Stack

UNROLLED = 4  # blocks a turn of the loop, see models/stack.py
Crossed = tuple[Kept, Kept, Mask | None]  # keys, values, mask


def sinusoids(places: Int[Array, " t"], width: int) -> Float[Array, "t {width}"]:
    """Eq. (4): sines in the first half, cosines in the second; width is even."""
    angles = places[:, None] * 1e4 ** (-jnp.arange(width // 2) / (width // 2))[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FeedForward(nn.Module):
    """Eq. (2)."""

    width: int
    hidden: int
    activation: str = "gelu"
    bias: bool = True
    dropout: float = 0.0
    dtype: str | None = None
    kernel_init: Any = nn.initializers.xavier_uniform()
    out_init: Any = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Tokens, train: bool = False) -> Tokens:
        def dense(features: int, init: Any, name: str, y: Tokens) -> Float[Array, "b t _"]:
            return by_rows(nn.Dense(features, self.bias, dtype=self.dtype, kernel_init=init, name=name), y)

        y = named(dense(self.hidden, self.kernel_init, "up", x), "hidden")
        if self.activation == "swiglu":
            y = nn.silu(y) * named(dense(self.hidden, self.kernel_init, "gate", x), "hidden")
        else:
            y = ACTIVATIONS[self.activation](y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return dense(self.width, self.out_init, "down", y)


class Block(nn.Module):
    """Eq. (1): one layer of an encoder or a decoder, on a whole sequence or on its next tokens."""

    width: int
    heads: int
    hidden: int  # width between the feed-forward layer's two products
    depth: int = 1  # of the stack it stands in
    activation: str = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    order: Literal["pre", "post"] = "pre"
    causal: bool = False
    rotary: bool = False
    cross: bool = False  # attends to an encoder's outputs as well
    bias: bool = True
    fused: bool = False
    dropout: float = 0.0  # of what is added to h
    initial: Literal["xavier", "gpt2"] = "xavier"
    dtype: str | None = None

    def setup(self) -> None:
        first: Any = nn.initializers.xavier_uniform()
        last = first
        if self.initial == "gpt2":  # normal(0.02), and less of it where 2·depth of them are added up
            first, last = (nn.initializers.normal(std) for std in (0.02, 0.02 / (2 * self.depth) ** 0.5))
        common: dict[str, Any] = {"bias": self.bias, "dtype": self.dtype, "kernel_init": first, "out_init": last}
        self.attention = Attention(self.width, self.heads, self.causal, self.rotary, fused=self.fused, **common)
        self.before_attention = normal(self.norm, self.bias)
        if self.cross:
            self.cross_attention = CrossAttention(self.width, self.heads, **common)
            self.before_cross = normal(self.norm, self.bias)
        self.feed_forward = FeedForward(self.width, self.hidden, self.activation, **common)
        self.before_feed_forward = normal(self.norm, self.bias)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        h: Tokens,
        mask: Mask | None = None,
        memory: Float[Array, "b s f"] | None = None,
        memory_mask: Mask | None = None,
        train: bool = False,
    ) -> Tokens:
        """A whole sequence; `memory` is the encoder's outputs."""
        h = self._add(h, self.before_attention, lambda x: self.attention(x, mask), train)
        crossed = None if memory is None else (*self.cross_attention.read(memory), memory_mask)
        return self._rest(h, crossed, train)

    def step(
        self, h: Tokens, cache: Cache, layer: Int[Array, ""], index: Int[Array, ""], crossed: Crossed | None = None
    ) -> tuple[Tokens, Cache]:
        """The tokens at place `index` and behind it, from the cache of those before them."""
        found: list[Cache] = []

        def attention(x: Tokens) -> Tokens:
            y, after = self.attention.step(x, cache, layer, index)
            found.append(after)
            return y

        h = self._add(h, self.before_attention, attention, False)
        return self._rest(h, crossed, False), found[0]

    def looks(
        self, h: Tokens, memory: Float[Array, "b s f"], mask: Mask | None = None
    ) -> tuple[Tokens, Float[Array, "b heads t s"]]:
        """As a call without `train`, and where the attention to the encoder's outputs looks."""
        after = self._add(h, self.before_attention, self.attention, False)
        k, v = self.cross_attention.read(memory)
        weights = self.cross_attention.weights(self.before_cross(after) if self.order == "pre" else after, k, mask)
        return self._rest(after, (k, v, mask), False), weights

    def read(self, memory: Float[Array, "b s f"]) -> tuple[Kept, Kept]:
        """Keys and values of the encoder's outputs."""
        return self.cross_attention.read(memory)

    def _rest(self, h: Tokens, crossed: Crossed | None, train: bool) -> Tokens:
        if crossed is not None:
            h = self._add(h, self.before_cross, lambda x: self.cross_attention(x, *crossed), train)
        return self._add(h, self.before_feed_forward, self.feed_forward, train)

    def _add(self, h: Tokens, norm: Any, f: Callable[[Tokens], Tokens], train: bool) -> Tokens:
        y = f(norm(h) if self.order == "pre" else h)
        h = h + self.drop(y, deterministic=not train).astype(h.dtype)
        return h if self.order == "pre" else norm(h)


def normal(kind: str, bias: bool, name: str | None = None) -> nn.Module:
    """LN, with a shift where layers have biases, or eq. (3)."""
    return nn.RMSNorm(name=name) if kind == "rms" else nn.LayerNorm(use_bias=bias, epsilon=1e-5, name=name)


class Transformer(Backbone):
    """Eq. (1)–(4)."""

    depth: int = 4  # blocks
    heads: int = 4  # of attention; must divide `width`
    expansion: float = 4.0  # width between the feed-forward layer's two products, over `width`
    context: int = 0  # the longest sequence; 0 is no limit, which a learned table has
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = "rotary"
    activation: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu"] = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    order: Literal["pre", "post"] = "pre"  # of norm and sum; post is the paper's
    bidirectional: bool = False  # every place sees every other: an encoder
    cross: bool = False  # attends to an encoder's outputs as well
    bias: bool = True  # in dense layers and layer norms
    fused: bool = True  # cuDNN's attention on a GPU in half precision, which has no forward-mode derivative
    dropout: float = 0.0  # of embeddings and of what is added to h, while training; not of attention's weights
    initial: Literal["xavier", "gpt2"] = "gpt2"  # kernels: by their sizes, or normal(0.02)

    @property
    def limit(self) -> int:
        return self.context

    @property
    def causal(self) -> bool:
        return not self.bidirectional

    @nn.compact
    def __call__(
        self,
        h: Sequence,
        state: State = None,
        lengths: Lengths | None = None,
        train: bool = False,
        memory: Float[Array, "b s f"] | None = None,
        memory_lengths: Lengths | None = None,
    ) -> tuple[Outputs, State]:
        """`memory`: an encoder's outputs; with a state it is not asked for, see `remember`."""
        self._check(h)
        steps, index = h.shape[1], state["index"] if state else 0
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        if self.positions == "learned":
            self.param("positions", nn.initializers.normal(0.02), (self.context, self.width))
        h = self._placed(h, index)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        block, layers = self._block(), Stack(self._block(), self.depth, self.remat, UNROLLED, name="layers")
        if state is None:
            # A causal network needs no lengths: what stands behind the end is seen by nobody before it.
            mask = None if lengths is None or self.causal else within(lengths, steps)[:, None, :]
            shown = None if memory is None or memory_lengths is None else within(memory_lengths, memory.shape[1])
            h, _ = layers(h, mask, memory, None if shown is None else shown[:, None, :], train=train)
        else:
            params = layers.variables["params"]["blocks"]
            crossed = state.get("crossed")
            mask = state["shown"][0][:, None, :] if "shown" in state else None

            def body(carry: Any, row: Any) -> tuple[Any, None]:
                params, layer, kept = row
                other = None if kept is None else (*kept, mask)
                return block.apply({"params": params}, *carry, layer, index, other, method="step"), None

            cache = (state["keys"], state["values"])
            rows = (params, jnp.arange(self.depth), crossed)
            (h, (keys, values)), _ = jax.lax.scan(body, (h, cache), rows)
            state = state | {"keys": keys, "values": values, "index": index + steps}
        if self.order == "pre":
            last: Any = normal(self.norm, self.bias, name="last")
            h = last(h)
        return h, state

    def empty(self, size: int, length: int) -> State:
        self._check(None, length)
        shape = (self.depth, size, self.heads, length, self.width // self.heads)
        zeros = jnp.zeros(shape, self.dtype or jnp.float32)
        return {"keys": zeros, "values": zeros, "index": jnp.zeros((), jnp.int32)}

    def looks(
        self, h: Sequence, memory: Float[Array, "b s f"], mask: Mask | None = None
    ) -> Float[Array, "layers b heads t s"]:
        """Where every layer's attention to the encoder's outputs looks; called under `apply`."""
        params = self.variables["params"]["layers"]["blocks"]
        step = lambda h, p: self._block().apply({"params": p}, h, memory, mask, method="looks")  # noqa: E731
        weights: Any = jax.lax.scan(step, self._placed(h, 0), params)[1]
        return weights

    def remember(self, state: State, memory: Float[Array, "b s f"], lengths: Lengths | None = None) -> State:
        """The state with every layer's keys and values of an encoder's outputs in it; called under `apply`."""
        params = self.variables["params"]["layers"]["blocks"]
        read = lambda p: self._block().apply({"params": p}, memory, method="read")  # noqa: E731
        shown = {} if lengths is None else {"shown": within(lengths, memory.shape[1])[None]}
        return state | {"crossed": jax.lax.map(read, params)} | shown

    def _placed(self, h: Sequence, index: int | Int[Array, ""]) -> Sequence:
        """Eq. (4), for vectors at `index` and behind it."""
        steps = h.shape[1]
        if self.positions == "learned":
            return h + jax.lax.dynamic_slice_in_dim(self.variables["params"]["positions"], index, steps)[None]
        if self.positions == "sinusoidal":
            return h + sinusoids(index + jnp.arange(steps), self.width)[None]
        return h

    def _block(self) -> Block:
        return Block(
            **{name: getattr(self, name) for name in ("width", "heads", "depth", "activation", "norm", "order")},
            **{
                name: getattr(self, name)
                for name in ("cross", "bias", "fused", "dropout", "initial", "dtype", "causal")
            },
            hidden=round(self.expansion * self.width),
            rotary=self.positions == "rotary",
            parent=None,
        )

    def _check(self, h: Sequence | None, length: int = 0) -> None:
        steps = length or (0 if h is None else h.shape[1])
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide a transformer's width={self.width}")
        pairs = {"rotary": self.width // self.heads, "sinusoidal": self.width}.get(self.positions, 0)
        if pairs % 2:
            raise ValueError(f"{self.positions} positions are of pairs of numbers, and {pairs} is odd")
        if self.positions == "learned" and not self.context:
            raise ValueError("learned positions are a table: say how long with context")
        if self.context and steps > self.context:
            raise ValueError(f"a sequence of {steps} tokens is longer than the transformer's context of {self.context}")
        if h is not None and h.shape[-1] != self.width:
            raise ValueError(f"a transformer of width {self.width} takes vectors as wide, not {h.shape[-1]}")


# What both of 1706.03762's models have, and table 3: base and big, each an encoder and a decoder of 6 layers.
PAPER: dict[str, Any] = {"order": "post", "positions": "sinusoidal", "activation": "relu", "initial": "xavier"}
PRESETS: dict[str, dict[str, Any]] = {
    "base": {"width": 512, "depth": 6, "heads": 8, "dropout": 0.1},
    "big": {"width": 1024, "depth": 6, "heads": 16, "dropout": 0.3},
}
