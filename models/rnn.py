"""Recurrent networks over time, stacked; x_t and h_t are rows, σ the logistic function, ⊙ elementwise.

    (1)  RNN   h_t = φ(x_t·W + h_{t−1}·U + b),  φ = tanh or relu                              Elman 1990
    (2)  LSTM  (i, f, g, o) = x_t·W + h_{t−1}·U + b,  b = 1 for f at the start       Hochreiter & Schmidhuber 1997;
               c_t = σ(f)⊙c_{t−1} + σ(i)⊙tanh(g),  h_t = σ(o)⊙tanh(c_t)              the forget gate: Gers et al. 2000
    (3)  GRU   (r, z) = σ of the first two of x_t·W + h_{t−1}·U + b                           Cho et al. 1406.1078
               n = tanh(x_t·W_n + b_n + r⊙(h_{t−1}·U_n + d))          reset after: cuDNN's and PyTorch's
               n = tanh(x_t·W_n + b_n + (r⊙h_{t−1})·U_n)              reset before: the paper's
               h_t = (1 − z)⊙n + z⊙h_{t−1}                            the paper's z; 1412.3555 has 1 − z for it
    (4)  layer norm: LN(x_t·W) + LN(h_{t−1}·U) + b for x_t·W + h_{t−1}·U + b, and tanh(LN(c_t)) for tanh(c_t)
                                                                                              Ba et al. 1607.06450 §6
    (5)  in two directions: [h_t forwards, h_t backwards], half of the width each             Schuster & Paliwal 1997

Behind a sequence's end the carry stands still, so that the last state is that of the last true step, and the backward
direction begins there. All x_t·W are one product ahead of the scan (models/recurrence.py has the scan).
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.backbone import Backbone, Lengths, Outputs, Sequence, State, within
from models.recurrence import Multiply, over_time

Carry = dict[str, Float[Array, "b h"]]
EPSILON = 1e-5  # of layer norm


def _normal(x: Float[Array, "*b f"], scale: Float[Array, " f"], axes: int) -> Float[Array, "*b f"]:
    """Layer norm of each of `axes` gates by itself."""
    y = x.reshape(*x.shape[:-1], axes, -1)
    y = (y - jnp.mean(y, axis=-1, keepdims=True)) * jax.lax.rsqrt(jnp.var(y, axis=-1, keepdims=True) + EPSILON)
    return y.reshape(x.shape) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


class Recurrent(Backbone):
    """Base of (1)–(3): layers of one cell."""

    GATES: ClassVar[int]  # columns of W and U, in widths
    CARRY: ClassVar[tuple[str, ...]] = ("h",)

    depth: int = 1  # layers
    bidirectional: bool = False  # eq. (5); such a network reads a whole sequence or nothing
    layer_norm: bool = False  # eq. (4)
    dropout: float = 0.0  # of what a layer hands to the next, while training
    window: int = 0  # truncated back-propagation: steps that a gradient flows back at most; 0 is all
    chunk: int = 0  # steps recomputed at once under `remat`; 0 is the square root of all

    @property
    def causal(self) -> bool:
        return not self.bidirectional

    @property
    def hidden(self) -> int:
        """Width of one direction."""
        return self.width // (1 + self.bidirectional)

    @nn.compact
    def __call__(
        self, h: Sequence, state: State = None, lengths: Lengths | None = None, train: bool = False
    ) -> tuple[Outputs, State]:
        if self.bidirectional and self.width % 2:
            raise ValueError(f"a network in two directions has half of its width in each, and {self.width} is odd")
        size, steps, _ = h.shape
        ends = jnp.full((size,), steps) if lengths is None else lengths
        valid = within(ends, steps).T[:, :, None]
        wide = jnp.promote_types(h.dtype, jnp.float32)
        own = {name: leaf.astype(wide) for name, leaf in (state or self.empty(size, steps)).items()}
        kept: list[Carry] = []
        x = h.swapaxes(0, 1).astype(wide)
        for layer in range(self.depth):
            if layer:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            directions = ("forwards", "backwards") if self.bidirectional else ("forwards",)
            found = []
            for i, direction in enumerate(directions):
                carry = {name: leaf[len(directions) * layer + i] for name, leaf in own.items()}
                carry, y = self._layer(f"{direction}_{layer}", x, carry, valid if lengths is not None else None)
                kept.append(carry)
                found.append(y)
            x = jnp.concatenate(found, axis=-1)
        last = {name: jnp.stack([carry[name] for carry in kept]) for name in self.CARRY}
        return x.swapaxes(0, 1), last

    def empty(self, size: int, length: int) -> State:
        rows = self.depth * (1 + self.bidirectional)
        return {name: jnp.zeros((rows, size, self.hidden), jnp.float32) for name in self.CARRY}

    def _layer(self, name: str, x: Float[Array, "t b f"], carry: Carry, valid: Any) -> tuple[Carry, Any]:
        hidden = self.hidden
        dtype = jnp.dtype(self.dtype or x.dtype)
        # PyTorch's initial draw: with 1/√hidden on both sides, gates begin near the middle of their range.
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * hidden**-0.5  # noqa: E731
        wide = self.GATES * hidden
        w = self.param(f"{name}_kernel", uniform, (x.shape[-1], wide))
        u = self.param(f"{name}_recurrent_kernel", uniform, (hidden, wide))
        params = {}
        for extra, shape in self.extras().items():
            first = nn.initializers.zeros if extra == "bias_after" else nn.initializers.ones
            params[extra] = self.param(f"{name}_{extra}", first, shape)
        mixed = (x.reshape(-1, x.shape[-1]).astype(dtype) @ w.astype(dtype)).reshape(*x.shape[:2], wide)
        mixed = mixed.astype(x.dtype)
        if self.layer_norm:
            scale = self.param(f"{name}_input_scale", nn.initializers.ones, (wide,))
            mixed = _normal(mixed, scale, self.GATES)
        mixed = mixed + self.param(f"{name}_bias", self.bias)[None, None]

        def cell(multiply: Multiply, params: Any, carry: Carry, row: Any) -> tuple[Carry, Any]:
            seen, here = row
            product = lambda name, y: multiply(name, y.astype(dtype)).astype(x.dtype)  # noqa: E731
            new = self.cell(product, params, carry, seen)
            if here is None:
                return new, new["h"]
            return jax.tree.map(lambda a, b: jnp.where(here, a, b), new, carry), jnp.where(here, new["h"], 0.0)

        return over_time(
            cell,
            params,
            {gate: kernel.astype(dtype) for gate, kernel in self.weights(u).items()},
            carry,
            (mixed, valid),
            reverse=name.startswith("backwards"),
            chunk=self.chunk,
            remat=self.remat,
            window=self.window,
        )

    def bias(self, key: Any) -> Float[Array, " g"]:
        """b at the start."""
        return jnp.zeros((self.GATES * self.hidden,))

    def weights(self, u: Float[Array, "h g"]) -> dict[str, Float[Array, "h _"]]:
        """U, in the parts by which a cell multiplies."""
        return {"u": u}

    def extras(self) -> dict[str, tuple[int, ...]]:
        """Other parameters of a layer, and their shapes: scales begin at one, `bias_after` at zero."""
        return {"recurrent_scale": (self.GATES * self.hidden,)} if self.layer_norm else {}

    @abstractmethod
    def cell(self, multiply: Multiply, params: Any, carry: Carry, x: Float[Array, "b g"]) -> Carry:
        """One step; x has x_t·W + b in it."""

    def recurrent(self, multiply: Multiply, params: Any, y: Float[Array, "b h"]) -> Float[Array, "b g"]:
        """y·U, normalised where that is asked for."""
        product = multiply("u", y)
        return _normal(product, params["recurrent_scale"], self.GATES) if self.layer_norm else product


class RNN(Recurrent):
    """Eq. (1)."""

    GATES: ClassVar[int] = 1

    activation: Literal["tanh", "relu"] = "tanh"

    def cell(self, multiply: Multiply, params: Any, carry: Carry, x: Float[Array, "b g"]) -> Carry:
        phi = jnp.tanh if self.activation == "tanh" else nn.relu
        return {"h": phi(x + self.recurrent(multiply, params, carry["h"]))}


class LSTM(Recurrent):
    """Eq. (2)."""

    GATES: ClassVar[int] = 4
    CARRY: ClassVar[tuple[str, ...]] = ("h", "c")

    forget: float = 1.0  # bias of f at the start

    def bias(self, key: Any) -> Float[Array, " g"]:
        return jnp.zeros((4, self.hidden)).at[1].set(self.forget).reshape(-1)

    def extras(self) -> dict[str, tuple[int, ...]]:
        return super().extras() | ({"carry_scale": (self.hidden,)} if self.layer_norm else {})

    def cell(self, multiply: Multiply, params: Any, carry: Carry, x: Float[Array, "b g"]) -> Carry:
        i, f, g, o = jnp.split(x + self.recurrent(multiply, params, carry["h"]), 4, axis=-1)
        c = nn.sigmoid(f) * carry["c"] + nn.sigmoid(i) * jnp.tanh(g)
        shown = _normal(c, params["carry_scale"], 1) if self.layer_norm else c
        return {"h": nn.sigmoid(o) * jnp.tanh(shown), "c": c}


class GRU(Recurrent):
    """Eq. (3)."""

    GATES: ClassVar[int] = 3

    reset: Literal["after", "before"] = "after"  # where r is applied to what comes from h

    def extras(self) -> dict[str, tuple[int, ...]]:
        return super().extras() | ({"bias_after": (self.hidden,)} if self.reset == "after" else {})

    def weights(self, u: Float[Array, "h g"]) -> dict[str, Float[Array, "h _"]]:
        if self.reset == "after":
            return {"u": u}
        return {"gates": u[:, : 2 * self.hidden], "new": u[:, 2 * self.hidden :]}

    def cell(self, multiply: Multiply, params: Any, carry: Carry, x: Float[Array, "b g"]) -> Carry:
        h, hidden = carry["h"], self.hidden
        seen_gates, seen = x[:, : 2 * hidden], x[:, 2 * hidden :]
        if self.reset == "after":
            product = self.recurrent(multiply, params, h)
            r, z = jnp.split(nn.sigmoid(seen_gates + product[:, : 2 * hidden]), 2, axis=-1)
            new = jnp.tanh(seen + r * (product[:, 2 * hidden :] + params["bias_after"][None]))
        else:
            scales = params.get("recurrent_scale")
            gates = multiply("gates", h)
            if scales is not None:
                gates = _normal(gates, scales[: 2 * hidden], 2)
            r, z = jnp.split(nn.sigmoid(seen_gates + gates), 2, axis=-1)
            product = multiply("new", r * h)
            if scales is not None:
                product = _normal(product, scales[2 * hidden :], 1)
            new = jnp.tanh(seen + product)
        return {"h": (1.0 - z) * new + z * h}
