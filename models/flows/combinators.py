"""What is built of bijections: chains, inverses, one within another, and several written as one.

    (1)  f = f_n ∘ … ∘ f_1:  log|det| adds up                                                `Chain`
    (2)  f⁻¹ has −log|det|, taken at its own input                                           `Invert`

Depth is models/flows/stacked.py, factoring out models/flows/coupling.py.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params, total, zeros
from models.model import Condition


@dataclass(frozen=True, kw_only=True)
class Identity(Bijection):
    """z = x."""

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return x, zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return z, zeros(z)


@dataclass(frozen=True, kw_only=True)
class Chain(Bijection):
    """Eq. (1): the first part is the nearest to the data. The parameters of part i are under its number."""

    parts: tuple[Bijection, ...]

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        params = {}
        for i, part in enumerate(self.parts):
            own = part.init(jax.random.fold_in(key, i), x, condition)
            x, _ = part.forward(own, x, condition)
            if own:
                params[str(i)] = own
        return params

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        logdet = zeros(x)
        for i, part in enumerate(self.parts):
            x, change = part.forward(params.get(str(i), {}), x, condition)
            logdet = logdet + change
        return x, logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        logdet = zeros(z)
        for i, part in reversed(list(enumerate(self.parts))):
            z, change = part.inverse(params.get(str(i), {}), z, condition)
            logdet = logdet + change
        return z, logdet

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        for i, part in reversed(list(enumerate(self.parts))):
            z = part.pull(params.get(str(i), {}), z, condition)
        return z

    def observe(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Any:
        logdet, seen = zeros(x), {}
        for i, part in enumerate(self.parts):
            x, change, numbers = part.observe(params.get(str(i), {}), x, condition)
            logdet, seen = logdet + change, total(seen, numbers)
        return x, logdet, seen

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        """Part by part, so that each has its own short cut and none of them is run forward as a whole."""
        params_bar: dict[str, Any] = {}
        condition_bar: dict[str, Any] = {}
        for i, part in reversed(list(enumerate(self.parts))):
            z, z_bar, own, change = part.backward(params.get(str(i), {}), z, condition, z_bar, logdet_bar)
            condition_bar = jax.tree.map(jnp.add, condition_bar, change) if condition_bar else change
            if own:
                params_bar[str(i)] = own
        return z, z_bar, params_bar, condition_bar


@dataclass(frozen=True, kw_only=True)
class Invert(Bijection):
    """Eq. (2)."""

    bijection: Bijection

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return self.bijection.init(key, x, condition)

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.bijection.inverse(params, x, condition)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.bijection.forward(params, z, condition)


@dataclass(frozen=True, kw_only=True)
class Within(Bijection):
    """Base of those that show `bijection` a part of x, or x in another order, and put back what it makes of it.

    `open` and `close` only move numbers: close undoes open, and is its transpose.
    """

    bijection: Bijection

    @abstractmethod
    def open(self, x: Float[Array, "b *s"]) -> tuple[Float[Array, "b *t"], Any]:
        """(what `bijection` is shown, what `close` needs besides)."""

    @abstractmethod
    def close(self, shown: Float[Array, "b *t"], rest: Any) -> Float[Array, "b *s"]: ...

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return self.bijection.init(key, self.open(x)[0], condition)

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        shown, rest = self.open(x)
        z, logdet = self.bijection.forward(params, shown, condition)
        return self.close(z, rest), logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        shown, rest = self.open(z)
        x, logdet = self.bijection.inverse(params, shown, condition)
        return self.close(x, rest), logdet

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        shown, rest = self.open(z)
        return self.close(self.bijection.pull(params, shown, condition), rest)

    def observe(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Any:
        shown, rest = self.open(x)
        z, logdet, numbers = self.bijection.observe(params, shown, condition)
        return self.close(z, rest), logdet, numbers

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        (shown, rest), (bar, rest_bar) = self.open(z), self.open(z_bar)
        x, x_bar, params_bar, condition_bar = self.bijection.backward(params, shown, condition, bar, logdet_bar)
        return self.close(x, rest), self.close(x_bar, rest_bar), params_bar, condition_bar


@dataclass(frozen=True, kw_only=True)
class Assembled(Bijection):
    """Base of bijections that are named settings of others: it acts as what `assemble` returns."""

    @abstractmethod
    def assemble(self) -> Bijection: ...

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return self.assemble().init(key, x, condition)

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.assemble().forward(params, x, condition)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.assemble().inverse(params, z, condition)

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        return self.assemble().pull(params, z, condition)

    def observe(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Any:
        return self.assemble().observe(params, x, condition)

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        return self.assemble().backward(params, z, condition, z_bar, logdet_bar)
