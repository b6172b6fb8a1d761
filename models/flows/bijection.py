"""The contract of a bijection z = f(x).

    (1)  log p(x) = log p_Z(f(x)) + log|det ∂f/∂x|                                           change of variables

Chains and inverses are models/flows/combinators.py, depth models/flows/stacked.py.

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
