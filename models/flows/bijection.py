"""The contract of a bijection z = f(x), and what is built of bijections: chains and inverses.

    (1)  log p(x) = log p_Z(f(x)) + log|det ∂f/∂x|                                           change of variables
    (2)  f = f_n ∘ … ∘ f_1:  log|det| adds up                                                `Chain`
    (3)  f⁻¹ has −log|det|, taken at its own input                                           `Invert`

Depth is models/flows/stacked.py, factoring out models/flows/coupling.py.

A log-determinant is one number an example, [B], in float32 or better. What comes out has as many numbers as what goes
in. Parameters are nested dicts; what is not trained in them is of an integer type (permutations, signs), and that is
how it is told apart: `split` and `merge`. A condition is a dict of arrays [B, …]: `label`, `given` (what a conditioner
is shown besides), `keys` (noise of estimators).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.model import Condition

Params = Mapping[str, Any]
Moved = tuple[Float[Array, "b *t"], Float[Array, " b"]]  # where an example went, and the log-determinant


@dataclass(frozen=True, kw_only=True)
class Bijection(ABC):
    """Base of all bijections. x and z are [B, …]; nothing depends on the other examples of a batch but `init`."""

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        """Parameters for data like `x`, and from its statistics where the paper has it so; none by default."""
        return {}

    @abstractmethod
    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        """z = f(x) and log|det ∂f/∂x|: from data to noise."""

    @abstractmethod
    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        """x = f⁻¹(z) and log|det ∂f⁻¹/∂z|: from noise to data."""

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        """f⁻¹(z) alone, for those whose log-determinant costs extra."""
        return self.inverse(params, z, condition)[0]

    def observe(
        self, params: Params, x: Float[Array, "b *s"], condition: Condition = None
    ) -> tuple[Float[Array, "b *t"], Float[Array, " b"], dict[str, Float[Array, "..."]]]:
        """`forward`, and what else there is to say of it: numbers by name, one an example or one for all.

        A chain adds up what its parts say. There are `nfe`, `kinetic_energy`, `jacobian_energy` (models/flows/cnf.py)
        and `reconstruction_error` (models/flows/stacked.py).
        """
        return (*self.forward(params, x, condition), {})

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        """Reverse-mode differentiation of `forward` from its output alone: x is had by inversion.

        Returns:
          x, and the cotangents of x, of the parameters that are trained and of the condition's floats.
        """
        x = self.pull(params, z, condition)
        trained, constants = split(params)
        floats, rest = split(condition or {})
        again = lambda p, x, c: self.forward(merge(p, constants), x, merge(c, rest) or None)  # noqa: E731
        _, vjp = jax.vjp(again, trained, x, floats)
        params_bar, x_bar, condition_bar = vjp((z_bar, logdet_bar))
        return x, x_bar, params_bar, condition_bar


def split(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is differentiable, the rest) of nested dicts; neither holds an empty dict."""
    floats: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            parts = split(value)
            for side, part in zip((floats, rest), parts, strict=True):
                if part:
                    side[name] = part
        else:
            (floats if jnp.issubdtype(value.dtype, jnp.inexact) else rest)[name] = value
    return floats, rest


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split`."""
    both = {name: merge(a[name], b[name]) for name in a if name in b}
    return {**a, **b, **both}


def total(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The sum of two sets of numbers by name, of which either may have names of its own."""
    return {name: a[name] + b[name] if name in a and name in b else {**a, **b}[name] for name in {**a, **b}}


def zeros(x: Float[Array, "b *s"]) -> Float[Array, " b"]:
    """A log-determinant of 0 for each example."""
    return jnp.zeros(x.shape[:1], jnp.promote_types(x.dtype, jnp.float32))


def per_example(value: Float[Array, "b *s"]) -> Float[Array, " b"]:
    """The sum over all axes but the first."""
    return jnp.sum(value, axis=tuple(range(1, value.ndim)))


@dataclass(frozen=True, kw_only=True)
class Identity(Bijection):
    """z = x."""

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return x, zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return z, zeros(z)


@dataclass(frozen=True, kw_only=True)
class Chain(Bijection):
    """Eq. (2): the first part is the nearest to the data. The parameters of part i are under its number."""

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
    """Eq. (3)."""

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
