"""What a flow takes data to: densities that are known and drawn from.

    normal      log p(z) = −‖z‖²/2 − D/2·log 2π
    logistic    log p(z) = −Σ [log(1 + e^z) + log(1 + e^−z)]                                     NICE 1410.8516 §3.4
    uniform     log p(z) = 0 on [0, 1)^D
    class       a normal with a mean and a scale of its own for each class and dimension            Glow 1807.03039

A temperature T < 1 draws nearer to the middle: z = mean + T·(z' − mean), z' from the prior. For normals z is then from
p(z)^(1/T²) (1807.03039 §6); x is from p(x)^(1/T²) only where the flow changes volume by the same factor everywhere.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.flows.bijection import Params, per_example
from models.model import Condition

Latent = Float[Array, "b *s"]


@dataclass(frozen=True, kw_only=True)
class Prior(ABC):
    """Base of all priors."""

    def init(self, z: Latent) -> Params:
        """Parameters for latents like z."""
        return {}

    @abstractmethod
    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        """In nats."""

    @abstractmethod
    def sample(
        self,
        params: Params,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Latent:
        """One draw of `shape` for each key."""


def _each(draw: Any, keys: Key[Array, " b"], shape: tuple[int, ...]) -> Latent:
    return jax.vmap(lambda key: draw(key, shape))(keys)


@dataclass(frozen=True, kw_only=True)
class Normal(Prior):
    """Standard normal."""

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        return per_example(-0.5 * (z**2 + math.log(2.0 * math.pi)))

    def sample(
        self,
        params: Params,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Latent:
        return temperature * _each(jax.random.normal, keys, shape)


@dataclass(frozen=True, kw_only=True)
class Logistic(Prior):
    """Standard logistic, of variance π²/3."""

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        return -per_example(jax.nn.softplus(z) + jax.nn.softplus(-z))

    def sample(
        self,
        params: Params,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Latent:
        return temperature * _each(jax.random.logistic, keys, shape)


@dataclass(frozen=True, kw_only=True)
class Uniform(Prior):
    """Uniform on the unit cube: what no flow at all is measured under."""

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        inside = jnp.all((z >= 0.0) & (z <= 1.0), axis=tuple(range(1, z.ndim)))
        return jnp.where(inside, 0.0, -jnp.inf).astype(z.dtype)

    def sample(
        self,
        params: Params,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Latent:
        return 0.5 + temperature * (_each(jax.random.uniform, keys, shape) - 0.5)


@dataclass(frozen=True, kw_only=True)
class ClassNormal(Prior):
    """A diagonal normal for each class, learned; and one for no class, which learns where data comes without labels."""

    num_classes: int = 10

    def init(self, z: Latent) -> Params:
        table = jnp.zeros((self.num_classes + 1, *z.shape[1:]), jnp.float32)
        return {"mean": table, "log_std": table}

    def _of(self, params: Params, size: int, condition: Condition) -> tuple[Latent, Latent]:
        label = (condition or {}).get("label")
        index: Int[Array, " b"] = jnp.full((size,), self.num_classes) if label is None else label
        index = jnp.where(index < 0, self.num_classes, index)
        return params["mean"][index], params["log_std"][index]

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        mean, log_std = self._of(params, z.shape[0], condition)
        away = (z - mean) * jnp.exp(-log_std)
        return per_example(-0.5 * (away**2 + math.log(2.0 * math.pi)) - log_std)

    def sample(
        self,
        params: Params,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Latent:
        mean, log_std = self._of(params, keys.shape[0], condition)
        return mean + temperature * jnp.exp(log_std) * _each(jax.random.normal, keys, shape)
