"""How training draws t: a distribution, given by its quantile function, and a way of drawing the uniforms it is fed.

uniform        t = u                                                     DDPM, 2006.11239 alg. 1 (continuous)
discrete       t = ⌈u·T⌉/T                                               DDPM, 2006.11239 alg. 1
logit_normal   t = sigmoid(m + s·Φ⁻¹(u))                                 SD3, 2403.03206 eq. 19
log_normal     log(σ/α) = m + s·Φ⁻¹(u)                                   EDM, 2206.00364 table 1
point          t = at                                                    distillation to one step, 2209.03003 §2.1

independent      u_i ~ U(0, 1)
low_discrepancy  u_i = (u₀ + i/B) mod 1, one uniform a batch             VDM, 2107.00630 app. I.1
antithetic       pairs (u, 1−u)                                          DDIM's public code
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Key

from paths.path import Path

EDGE = 1e-6  # Φ⁻¹ is infinite at 0 and 1


@dataclass(frozen=True, kw_only=True)
class TimeDistribution(ABC):
    """Base of all time distributions. A new one defines `quantile(u, path)` in [path.t_min, path.t_max]."""

    draw: Literal["independent", "low_discrepancy", "antithetic"] = "independent"  # how the uniforms are drawn

    @abstractmethod
    def quantile(self, u: Float[Array, " b"], path: Path) -> Float[Array, " b"]: ...

    def __call__(self, key: Key[Array, ""], size: int, path: Path) -> Float[Array, "{size}"]:
        """Draws `size` times."""
        if self.draw == "low_discrepancy":
            u = (jax.random.uniform(key) + jnp.arange(size) / size) % 1.0
        elif self.draw == "antithetic":
            half = jax.random.uniform(key, ((size + 1) // 2,))
            u = jnp.concatenate([half, 1.0 - half])[:size]
        else:
            u = jax.random.uniform(key, (size,))
        return jnp.clip(self.quantile(u, path), path.t_min, path.t_max)


@dataclass(frozen=True, kw_only=True)
class Uniform(TimeDistribution):
    """Uniform on [t_min, t_max]."""

    def quantile(self, u: Float[Array, " b"], path: Path) -> Float[Array, " b"]:
        return path.t_min + u * (path.t_max - path.t_min)


@dataclass(frozen=True, kw_only=True)
class Discrete(TimeDistribution):
    """Uniform on {1/T, 2/T, …, 1}: the steps of a discrete path and no time between them."""

    steps: int = 1000  # T

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")

    def quantile(self, u: Float[Array, " b"], path: Path) -> Float[Array, " b"]:
        return jnp.clip(jnp.ceil(u * self.steps), 1, self.steps) / self.steps


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeDistribution):
    """Normal in logit(t): more often in the middle of the path."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std < 0.0:
            raise ValueError(f"std={self.std} must be at least 0")

    def quantile(self, u: Float[Array, " b"], path: Path) -> Float[Array, " b"]:
        return jax.nn.sigmoid(self.mean + self.std * ndtri(jnp.clip(u, EDGE, 1.0 - EDGE)))


@dataclass(frozen=True, kw_only=True)
class LogNormal(TimeDistribution):
    """Normal in log(σ/α), as EDM trains."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std < 0.0:
            raise ValueError(f"std={self.std} must be at least 0")

    def quantile(self, u: Float[Array, " b"], path: Path) -> Float[Array, " b"]:
        log_noise = self.mean + self.std * ndtri(jnp.clip(u, EDGE, 1.0 - EDGE))
        return path.time_of_log_snr(-2.0 * log_noise)


@dataclass(frozen=True, kw_only=True)
class Point(TimeDistribution):
    """One time alone: at 1, what a single Euler step from noise has to say."""

    at: float = 1.0

    def quantile(self, u: Float[Array, " b"], path: Path) -> Float[Array, " b"]:
        return jnp.full_like(u, self.at)
