"""What a flow takes data to: densities that are known and drawn from.

    normal      log p(z) = −‖z‖²/2 − D/2·log 2π
    logistic    log p(z) = −Σ [log(1 + e^z) + log(1 + e^−z)]                                     NICE 1410.8516 §3.4
    uniform     log p(z) = 0 on [0, 1]^D
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
from jaxtyping import Array, Float, Key

from models.flows.bijection import Params, per_example
from models.model import Condition, class_rows, label_of

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
    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """One draw around 0, before it is scaled and moved."""

    def placed(self, params: Params, size: int, condition: Condition) -> tuple[Any, Any]:
        """The mean and the scale of each of so many draws; for all of them 0 and 1 by default."""
        return 0.0, 1.0

    def sample(
        self,
        params: Params,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Latent:
        """One draw of `shape` for each key."""
        mean, scale = self.placed(params, keys.shape[0], condition)
        return mean + temperature * scale * jax.vmap(lambda key: self.draw(key, shape))(keys)


@dataclass(frozen=True, kw_only=True)
class Normal(Prior):
    """Standard normal."""

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        return per_example(-0.5 * (z**2 + math.log(2.0 * math.pi)))

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        return jax.random.normal(key, shape)


@dataclass(frozen=True, kw_only=True)
class Logistic(Prior):
    """Standard logistic, of variance π²/3."""

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        return -per_example(jax.nn.softplus(z) + jax.nn.softplus(-z))

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        return jax.random.logistic(key, shape)


@dataclass(frozen=True, kw_only=True)
class Uniform(Prior):
    """Uniform on the unit cube."""

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        inside = jnp.all((z >= 0.0) & (z <= 1.0), axis=tuple(range(1, z.ndim)))
        return jnp.where(inside, 0.0, -jnp.inf).astype(z.dtype)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        return jax.random.uniform(key, shape) - 0.5

    def placed(self, params: Params, size: int, condition: Condition) -> tuple[Any, Any]:
        return 0.5, 1.0


@dataclass(frozen=True, kw_only=True)
class ClassNormal(Prior):
    """A diagonal normal for each class, learned; and one for no class, which learns where data comes without labels."""

    num_classes: int = 10

    def init(self, z: Latent) -> Params:
        table = jnp.zeros((self.num_classes + 1, *z.shape[1:]), jnp.float32)
        return {"mean": table, "log_std": table}

    def placed(self, params: Params, size: int, condition: Condition) -> tuple[Latent, Latent]:
        mean, log_std = self._rows(params, size, condition)
        return mean, jnp.exp(log_std)

    def log_prob(self, params: Params, z: Latent, condition: Condition = None) -> Float[Array, " b"]:
        mean, log_std = self._rows(params, z.shape[0], condition)
        away = (z - mean) * jnp.exp(-log_std)
        return per_example(-0.5 * (away**2 + math.log(2.0 * math.pi)) - log_std)

    def _rows(self, params: Params, size: int, condition: Condition) -> tuple[Latent, Latent]:
        """The mean and the logarithm of the standard deviation of each example's class."""
        row = class_rows(label_of(condition), size, self.num_classes)
        return params["mean"][row], params["log_std"][row]

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        return jax.random.normal(key, shape)
