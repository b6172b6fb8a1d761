"""How noise is paired with data before xₜ = α·x₀ + σ·ε is formed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Key


@dataclass(frozen=True, kw_only=True)
class Coupling(ABC):
    """Base of all couplings: gives each data point of a batch its noise."""

    @abstractmethod
    def noise(self, key: Key[Array, ""], x0: Float[Array, "b *s"]) -> Float[Array, "b *s"]: ...


@dataclass(frozen=True, kw_only=True)
class Independent(Coupling):
    """ε ~ N(0, I), drawn without looking at the data: diffusion and plain flow matching."""

    def noise(self, key: Key[Array, ""], x0: Float[Array, "b *s"]) -> Float[Array, "b *s"]:
        return jax.random.normal(key, x0.shape, x0.dtype)
