"""Recurrent networks over time, stacked; x_t and h_t are rows, σ the logistic function, ⊙ elementwise.

    (1)  RNN   h_t = φ(x_t·W + h_{t−1}·U + b),  φ = tanh or relu                              Elman 1990
    (2)  LSTM  (i, f, g, o) = x_t·W + h_{t−1}·U + b,  b = 1 for f at the start       Hochreiter & Schmidhuber 1997;
               c_t = σ(f)⊙c_{t−1} + σ(i)⊙tanh(g),  h_t = σ(o)⊙tanh(c_t)              the forget gate: Gers et al. 2000
    (3)  GRU   (r, z) = σ of the first two of x_t·W + h_{t−1}·U + b                           Cho et al. 1406.1078
               n = tanh(x_t·W_n + b_n + r⊙(h_{t−1}·U_n + d))          reset after: cuDNN's and PyTorch's
               n = tanh(x_t·W_n + b_n + (r⊙h_{t−1})·U_n)              reset before: the paper's
               h_t = (1 − z)⊙n + z⊙h_{t−1}                            the paper's z; 1412.3555 has 1 − z for it
    (4)  layer norm: LN(x_t·W) + LN(h_{t−1}·U) + b for x_t·W + h_{t−1}·U + b, of each gate by itself, and tanh(LN(c_t))
         for tanh(c_t)                                                                 after Ba et al. 1607.06450 §6
    (5)  in two directions: [h_t forwards, h_t backwards], half of the width each             Schuster & Paliwal 1997

Behind a sequence's end the carry stands still, so that the last state is that of the last true step, and the backward
direction begins there. All x_t·W are one product ahead of the scan, or of the segments of time that are checkpointed
(models/recurrence.py has the scan, models/remat.py the segments).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.backbone import Backbone, Lengths, Outputs, Sequence, State, within
from models.recurrence import Multiply, over_time

Carry = dict[str, Float[Array, "b h"]]
Total = Callable[[str, Float[Array, "b h"]], Float[Array, "b g"]]
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
        wide, ones = self.GATES * hidden, nn.initializers.ones
        w = self.param(f"{name}_kernel", uniform, (x.shape[-1], wide))
        u = self.weights(self.param(f"{name}_recurrent_kernel", uniform, (hidden, wide)))
        params: dict[str, Any] = {}
        scale_in = self.param(f"{name}_input_scale", ones, (wide,)) if self.layer_norm else None
        if self.layer_norm:
            scales = {f"{part}_scale": kernel.shape[1:] for part, kernel in u.items()}
            if "c" in self.CARRY:
                scales["carry_scale"] = (hidden,)
            params = {key: self.param(f"{name}_{key}", ones, shape) for key, shape in scales.items()}
        bias, more = self.param(f"{name}_bias", self.bias), self.more(name)

        def prepare(part: Any) -> Any:
            """All x_t·W of these steps as one product."""
            x, here = part
            mixed = (x.reshape(-1, x.shape[-1]).astype(dtype) @ w.astype(dtype)).reshape(*x.shape[:2], wide)
            mixed = mixed.astype(x.dtype)
            if scale_in is not None:
                mixed = _normal(mixed, scale_in, self.GATES)
            terms, rest = self.terms(more, mixed + bias[None, None])
            # What is normalised before it is added is added by the cell; else it is added as the product is made.
            added = jax.tree.map(jnp.zeros_like, terms) if self.layer_norm else terms
            return (rest, terms if self.layer_norm else None, here), added

        def cell(multiply: Multiply, params: Any, carry: Carry, row: Any) -> tuple[Carry, Any]:
            rest, own, here = row

            def total(part: str, y: Any) -> Any:
                product = multiply(part, y.astype(dtype))
                if not self.layer_norm:
                    return product
                return own[part] + _normal(product, params[f"{part}_scale"], product.shape[-1] // hidden)

            new = self.cell(total, params, carry, rest)
            if here is None:
                return new, new["h"]
            return jax.tree.map(lambda a, b: jnp.where(here, a, b), new, carry), jnp.where(here, new["h"], 0.0)

        return over_time(
            cell,
            params,
            u,
            carry,
            (x, valid),
            prepare,
            dtype=dtype,
            reverse=name.startswith("backwards"),
            remat=self.remat,
            window=self.window,
        )

    def bias(self, key: Any) -> Float[Array, " g"]:
        """b at the start."""
        return jnp.zeros((self.GATES * self.hidden,))

    def weights(self, u: Float[Array, "h g"]) -> dict[str, Float[Array, "h _"]]:
        """U, in the parts by which a cell multiplies."""
        return {"u": u}

    def more(self, name: str) -> Any:
        """Parameters of `terms`."""
        return None

    def terms(self, more: Any, mixed: Float[Array, "t b g"]) -> tuple[dict[str, Float[Array, "t b _"]], Any]:
        """Of x_t·W + b: what is added to each product, and the rest."""
        return {"u": mixed}, None

    @abstractmethod
    def cell(self, total: Total, params: Any, carry: Carry, rest: Any) -> Carry:
        """One step. total(part, y) is y·U, normalised where that is asked for, and the term that is added to it."""


class RNN(Recurrent):
    """Eq. (1)."""

    GATES: ClassVar[int] = 1

    activation: Literal["tanh", "relu"] = "tanh"

    def cell(self, total: Total, params: Any, carry: Carry, rest: Any) -> Carry:
        return {"h": (jnp.tanh if self.activation == "tanh" else nn.relu)(total("u", carry["h"]))}


class LSTM(Recurrent):
    """Eq. (2)."""

    GATES: ClassVar[int] = 4
    CARRY: ClassVar[tuple[str, ...]] = ("h", "c")

    forget: float = 1.0  # bias of f at the start

    def bias(self, key: Any) -> Float[Array, " g"]:
        return jnp.zeros((4, self.hidden)).at[1].set(self.forget).reshape(-1)

    def cell(self, total: Total, params: Any, carry: Carry, rest: Any) -> Carry:
        i, f, g, o = jnp.split(total("u", carry["h"]), 4, axis=-1)
        c = nn.sigmoid(f) * carry["c"] + nn.sigmoid(i) * jnp.tanh(g)
        shown = _normal(c, params["carry_scale"], 1) if self.layer_norm else c
        return {"h": nn.sigmoid(o) * jnp.tanh(shown), "c": c}


class GRU(Recurrent):
    """Eq. (3)."""

    GATES: ClassVar[int] = 3

    reset: Literal["after", "before"] = "after"  # where r is applied to what comes from h

    def weights(self, u: Float[Array, "h g"]) -> dict[str, Float[Array, "h _"]]:
        if self.reset == "after":
            return {"u": u}
        return {"gates": u[:, : 2 * self.hidden], "new": u[:, 2 * self.hidden :]}

    def more(self, name: str) -> Any:
        return (
            self.param(f"{name}_bias_after", nn.initializers.zeros, (self.hidden,)) if self.reset == "after" else None
        )

    def terms(self, more: Any, mixed: Float[Array, "t b g"]) -> tuple[dict[str, Float[Array, "t b _"]], Any]:
        gates, new = mixed[:, :, : 2 * self.hidden], mixed[:, :, 2 * self.hidden :]
        if self.reset == "before":
            return {"gates": gates, "new": new}, None
        return {"u": jnp.concatenate([gates, jnp.broadcast_to(more[None, None], new.shape)], axis=2)}, new

    def cell(self, total: Total, params: Any, carry: Carry, rest: Any) -> Carry:
        h, both = carry["h"], 2 * self.hidden
        if self.reset == "after":
            product = total("u", h)
            r, z = jnp.split(nn.sigmoid(product[:, :both]), 2, axis=-1)
            new = jnp.tanh(rest + r * product[:, both:])
        else:
            r, z = jnp.split(nn.sigmoid(total("gates", h)), 2, axis=-1)
            new = jnp.tanh(total("new", r * h))
        return {"h": (1.0 - z) * new + z * h}
