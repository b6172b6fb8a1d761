"""From levels to real numbers: noise within each bin, and what it costs.

x lies on a lattice of step Δ; y = x + Δ·(u − ½), u in (0, 1)^D from q(u | x). Then for any density p of y

    (1)  log P(x) ≥ E_q[ log p(y) − log q(y | x) ],   log q(y | x) = log q(u | x) − D·log Δ      1511.01844 eq. 4
    (2)  uniform: q(u | x) = 1, so −log q(y | x) = D·log Δ
    (3)  variational: u = sigmoid(g(ε; x)), ε normal and g a flow:                               Flow++ 1902.00275 §3.1
         log q(u | x) = log N(ε) − log|det ∂g/∂ε| − Σ log u(1 − u)

What is returned is y and −log q(y | x), so that bits/dim need no constant: they are −(log p(y) − log q)/(D·log 2).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Params, per_example, zeros
from models.flows.priors import Normal
from models.model import Condition

Filled = tuple[Float[Array, "b *s"], Float[Array, " b"]]


def dequantize(keys: Key[Array, " b"], x: Float[Array, "b *s"], bin_width: float) -> Float[Array, "b *s"]:
    """y of eq. (2): each value anywhere in its bin, which is centred on it."""
    uniform = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
    return x + bin_width * (uniform - 0.5)


@dataclass(frozen=True, kw_only=True)
class Dequantization(ABC):
    """Base. Data in [−1, 1] with so many levels lies on a lattice of step 2/(levels − 1)."""

    @property
    def bin_width(self) -> float | None:
        """Δ; None where data is continuous."""
        return None

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return {}

    @abstractmethod
    def __call__(
        self, params: Params, keys: Key[Array, " b"], x: Float[Array, "b *s"], condition: Condition = None
    ) -> Filled:
        """y and −log q(y | x) in nats, of the noise that each example's key draws."""


@dataclass(frozen=True, kw_only=True)
class Continuous(Dequantization):
    """Data is real as it stands: y = x."""

    def __call__(
        self, params: Params, keys: Key[Array, " b"], x: Float[Array, "b *s"], condition: Condition = None
    ) -> Filled:
        return x, zeros(x)


@dataclass(frozen=True, kw_only=True)
class _Levels(Dequantization):
    """Data with levels."""

    levels: int = 256  # 256 for 8-bit pixels

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"dequantisation needs at least 2 levels, got {self.levels}")

    @property
    def bin_width(self) -> float:
        return 2.0 / (self.levels - 1)


@dataclass(frozen=True, kw_only=True)
class UniformDequantization(_Levels):
    """Eq. (2)."""

    def __call__(
        self, params: Params, keys: Key[Array, " b"], x: Float[Array, "b *s"], condition: Condition = None
    ) -> Filled:
        cost = math.log(self.bin_width) * math.prod(x.shape[1:])
        return dequantize(keys, x, self.bin_width), zeros(x) + cost


@dataclass(frozen=True, kw_only=True)
class VariationalDequantization(_Levels):
    """Eq. (3). `bijection` is shown x as the condition's `given`."""

    bijection: Bijection

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return self.bijection.init(key, jax.random.normal(key, x.shape, x.dtype), {**(condition or {}), "given": x})

    def __call__(
        self, params: Params, keys: Key[Array, " b"], x: Float[Array, "b *s"], condition: Condition = None
    ) -> Filled:
        eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        u, logdet = self.bijection.forward(params, eps, {**(condition or {}), "given": x})
        slopes = per_example(jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u))
        minus_log_q = logdet + slopes - Normal().log_prob({}, eps)
        cost = math.log(self.bin_width) * math.prod(x.shape[1:])
        return x + self.bin_width * (jax.nn.sigmoid(u) - 0.5), minus_log_q + cost
