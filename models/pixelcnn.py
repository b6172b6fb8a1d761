"""The gated PixelCNN: tokens on a grid in raster order, each from all before it within a window that grows with depth.

c is the vector before the first token (one for each class), x[i, j] the token's at row i and column j, zero outside the
grid; k half of a window's side, ⊙ elementwise, σ the logistic function. All from 1606.05328, eq. 4 and fig. 2:

    (1)  v⁰ = h⁰ = x;  gate(a, b) = tanh(a)⊙σ(b)
    (2)  p[i, j] = Σ_{m ≤ k} Σ_{|n| ≤ k} v[i − m, j + n]·W[m, n] + c·V + b,  v' = gate(p)              rows above
    (3)  q[i, j] = Σ_{n ≤ k} h[i, j − n]·W'[n] + p[i, j]·U + c·V' + b',  h' = h + gate(q)·W'' + b''    what is left of j
    (4)  m ≥ 1 in (2) and n ≥ 1 in (3) in the first layer, which adds no h; m ≥ 0 and n ≥ 0 in those behind it
    (5)  y = relu(relu(h)·W_y + b_y)

So v and p of row i depend on rows above i alone, and h on what is left of j as well: on all tokens before [i, j], and
there is no blind spot. A sequence's first vector is c, the others are the tokens; output t sees the tokens before t.

A step (the idea is 1704.06001's) reads one token more. Where a row begins, (2) is made for the whole row, from the k
rows above that each layer keeps; then (3) for one place at a time, from the k columns left of it. A grid's height costs
a step nothing.

The sums of (2) and (3) are each one product of the window's places, side by side, with one matrix: in a scan over
layers XLA's CPU backend is slow at convolutions (models/convolution.py).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.attention import by_rows
from models.backbone import Backbone, Lengths, Outputs, Sequence, State
from models.remat import named
from models.stack import Stack

Vector = Float[Array, "b f"]


def _gate(x: Float[Array, "*b g"]) -> Float[Array, "*b f"]:
    """Eq. (1), of a and b side by side."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


# Checkpointed, for else the backward pass would be handed all shifted copies of x instead of x.
@partial(jax.checkpoint, static_argnums=(2, 3, 4), prevent_cse=False)
def _summed(
    x: Float[Array, "b r c f"], kernel: Float[Array, "w g"], rows: int, columns: int, dtype: Any
) -> Float[Array, "b _ _ g"]:
    """x[i + m, j + n]·W[m, n], summed over a window of `rows` and `columns` wherever it is inside of x."""
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    x, kernel, wide = x.astype(dtype), kernel.astype(dtype), x.dtype
    places = [x[:, m : m + height, n : n + width] for m in range(rows) for n in range(columns)]
    window = jnp.concatenate(places, axis=-1)
    y = jnp.matmul(window.reshape(-1, window.shape[-1]), kernel, preferred_element_type=wide)
    return y.reshape(*window.shape[:-1], -1)


class GatedLayer(nn.Module):
    """Eq. (2)–(4)."""

    width: int
    kernel: int  # side of the window, 2·k + 1
    first: bool = False
    dropout: float = 0.0  # of what is added to h
    dtype: str | None = None

    def setup(self) -> None:
        init, half = nn.initializers.lecun_normal(), self.kernel // 2
        places = half + (not self.first)  # of m, and of n in (3)
        self.above_kernel = self.param("above_kernel", init, (places * self.kernel * self.width, 2 * self.width))
        self.left_kernel = self.param("left_kernel", init, (places * self.width, 2 * self.width))
        self.told = nn.Dense(4 * self.width, dtype=self.dtype)  # V and V'
        self.between = nn.Dense(2 * self.width, use_bias=False, dtype=self.dtype)  # U
        self.out = nn.Dense(self.width, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, both: Float[Array, "b r c g"], c: Vector, train: bool = False) -> Float[Array, "b r c g"]:
        """v and h of whole rows from the first on, side by side."""
        half = self.kernel // 2
        v, h = jnp.split(both, 2, axis=-1)
        v, message = self.above(jnp.pad(v, ((0, 0), (half, 0), (0, 0), (0, 0))), c)
        h = self.left(jnp.pad(h, ((0, 0), (0, 0), (half, 0), (0, 0))), message, train)
        return jnp.concatenate([v, h], axis=-1)

    def above(self, v: Float[Array, "b _ c f"], c: Vector) -> tuple[Float[Array, "b r c f"], Float[Array, "b r c g"]]:
        """Eq. (2), from these rows and k above them; and what (3) adds of p and c."""
        half = self.kernel // 2
        told, own = jnp.split(self.told(c).astype(v.dtype)[:, None, None], 2, axis=-1)
        v = jnp.pad(v[:, : -1 if self.first else None], ((0, 0), (0, 0), (half, half), (0, 0)))
        p = _summed(v, self.above_kernel, half + (not self.first), self.kernel, self.dtype or v.dtype)
        p = named(p, "conv") + told
        return _gate(p), by_rows(self.between, p).astype(v.dtype) + own

    def left(
        self, h: Float[Array, "b r _ f"], message: Float[Array, "b r c g"], train: bool = False
    ) -> Float[Array, "b r c f"]:
        """Eq. (3), from these columns and k left of them."""
        half = self.kernel // 2
        seen = h[:, :, : -1 if self.first else None]
        q = _summed(seen, self.left_kernel, 1, half + (not self.first), self.dtype or h.dtype)
        y = by_rows(self.out, _gate(named(q, "conv") + message)).astype(h.dtype)
        y = self.drop(y, deterministic=not train)
        return y if self.first else h[:, :, half:] + y


class PixelCNN(Backbone):
    """Eq. (1)–(5). The first vector that it reads is c, so a LanguageModel must have a start token."""

    depth: int = 6  # layers behind the first
    kernel: int = 3  # side of their window
    first_kernel: int = 7  # of the first layer's
    dropout: float = 0.0
    grid: tuple[int, int] | None = None  # rows and columns; None: the data's

    @property
    def limit(self) -> int:
        return self.grid[0] * self.grid[1] if self.grid else 0

    @property
    def starts(self) -> bool:
        return True

    @nn.compact
    def __call__(
        self, h: Sequence, state: State = None, lengths: Lengths | None = None, train: bool = False
    ) -> tuple[Outputs, State]:
        size, steps, _ = h.shape
        columns = self._columns(steps)
        if lengths is not None:
            raise ValueError("a PixelCNN's sequences lie on one grid, which has no padding: lengths are not for it")
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        if state is None:
            rows = -(-steps // columns)  # no more than are asked for
            x = jnp.pad(h[:, 1:], ((0, 0), (0, rows * columns - steps + 1), (0, 0)))
            x = x.reshape(size, rows, columns, self.width)
            first: Any = self._layer(True, name="first")
            both = first(jnp.concatenate([x, x], axis=-1), h[:, 0], train)
            both, _ = Stack(self._layer(parent=None), self.depth, self.remat, name="layers")(both, h[:, 0], train=train)
            h = both[..., self.width :].reshape(size, rows * columns, self.width)[:, :steps]
        else:
            state = {name: leaf.astype(h.dtype) if leaf.ndim else leaf for name, leaf in state.items()}
            state, h = jax.lax.scan(self._step, state, h.swapaxes(0, 1))
            h = h.swapaxes(0, 1)
        y = by_rows(nn.Dense(self.width, dtype=self.dtype, name="last"), nn.relu(h))
        return nn.relu(y).astype(h.dtype), state

    def empty(self, size: int, length: int) -> State:
        columns, above, half = self._columns(length), self.first_kernel // 2, self.kernel // 2
        shapes = {
            "c": (1, size, self.width),
            "x": (1, size, above + 1, columns, self.width),  # the row that is being read, and those above it
            "v": (self.depth, size, half, columns, self.width),  # the rows above it
            "h": (self.depth, size, half, self.width),  # the columns left of the place
            "messages": (self.depth + 1, size, columns, 2 * self.width),  # from v to the row that is being read
        }
        arrays = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}
        return arrays | {"index": jnp.zeros((), jnp.int32)}

    def _step(self, state: State, vector: Vector) -> tuple[State, Vector]:
        """h of the last layer at the next place, `vector` being that of the token before it, or c."""
        columns, above = self._columns(), self.first_kernel // 2
        index = state["index"]
        column = index % columns
        c = jnp.where(index == 0, vector, state["c"][0])
        token = jnp.where(index == 0, 0.0, vector)
        x = state["x"].at[0, :, above, (index - 1) % columns].set(token)
        kept = (x, state["v"], state["h"], state["messages"])
        x, v, h, messages = jax.lax.cond(column == 0, partial(self._row, c), lambda *kept: kept, *kept)

        message = jax.lax.dynamic_index_in_dim(messages, column, 2)[:, :, None]
        row = jnp.pad(x[0, :, above:], ((0, 0), (0, 0), (above, 0), (0, 0)))
        seen = jax.lax.dynamic_slice_in_dim(row, column, above + 1, 2)
        (first, own), (layer, blocks) = self._layers()
        new: Any = first.apply({"params": own}, seen, message[0], method="left")

        def body(new: Any, one: Any) -> tuple[Any, Any]:
            params, h, message = one
            seen = jnp.concatenate([h[:, None], new], axis=2)
            return layer.apply({"params": params}, seen, message, method="left"), seen[:, 0, 1:]

        new, h = jax.lax.scan(body, new, (blocks, h, message[1:]))
        return {"c": c[None], "x": x, "v": v, "h": h, "messages": messages, "index": index + 1}, new[:, 0, 0]

    def _row(self, c: Vector, x: Any, v: Any, h: Any, messages: Any) -> tuple[Any, Any, Any, Any]:
        """The same where a row begins: v of all layers, and what they tell the row."""
        x = jnp.concatenate([x[:, :, 1:], jnp.zeros_like(x[:, :, :1])], axis=2)
        (first, own), (layer, blocks) = self._layers()
        new, message = first.apply({"params": own}, x[0], c, method="above")

        def body(new: Any, one: Any) -> tuple[Any, Any]:
            params, v = one
            rows = jnp.concatenate([v, new], axis=1)
            new, message = layer.apply({"params": params}, rows, c, method="above")
            return new, (rows[:, 1:], message[:, 0])

        _, (v, others) = jax.lax.scan(body, new, (blocks, v))
        return x, v, jnp.zeros_like(h), jnp.concatenate([message[None, :, 0], others])

    def _layers(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """The first layer and one of the others, unbound, each with its parameters."""
        params = self.variables["params"]
        first, layer = self._layer(True, parent=None), self._layer(parent=None)
        return (first, params["first"]), (layer, params["layers"]["blocks"])

    def _layer(self, first: bool = False, **place: Any) -> GatedLayer:
        side = self.first_kernel if first else self.kernel
        return GatedLayer(self.width, side, first, self.dropout, self.dtype, **place)

    def _columns(self, length: int = 0) -> int:
        """Of the grid, which must have room for a sequence of this length."""
        if self.grid is None:
            raise ValueError("a PixelCNN needs a grid: that of data which lies on one, or --model.backbone.grid")
        if self.kernel % 2 == 0 or self.first_kernel % 2 == 0 or self.first_kernel < 3:
            raise ValueError(
                f"windows have a middle: kernel={self.kernel} and first_kernel={self.first_kernel} must be odd, the "
                "second at least 3"
            )
        if length > self.limit:
            raise ValueError(f"a sequence of {length} tokens is longer than a grid of {self.grid} has places")
        return self.grid[1]
