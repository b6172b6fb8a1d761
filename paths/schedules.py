"""The field's paths, each as α(t) and σ(t) of xₜ = α·x₀ + σ·ε (t = 0 data, t = 1 noise).

    (1)  VP          log α = −t²(β₁−β₀)/4 − tβ₀/2,  σ² = 1 − α²           score SDE, 2011.13456 eq. 32-33
    (2)  sub-VP      α of VP,  σ = 1 − α²                                 score SDE, 2011.13456 eq. 34-35
    (3)  VE          α = 1,  σ = σ_min(σ_max/σ_min)ᵗ                      score SDE, 2011.13456 eq. 30-31
    (4)  DDPM        α² = ᾱ_i = Π(1−β_j) at t = i/T,  σ² = 1 − ᾱ          DDPM, 2006.11239 eq. 4
    (5)  cosine      α = cos(π/2·(t+s)/(1+s)) / cos(π/2·s/(1+s)),  σ² = 1 − α²   iDDPM, 2102.09672 eq. 17
    (6)  EDM         α = 1,  σ = σ_min + t(σ_max − σ_min)                 EDM, 2206.00364 table 1 (σ(t) = t)
    (7)  rectified   α = 1 − t,  σ = t                                    2209.03003 eq. 1; 2210.02747 eq. 22 (σ_min)

1 − α² is never formed by subtraction: near t = 0 float32 would lose σ altogether.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from paths.path import Path, Times, namespace


def _check_levels(path: Path, low: float, high: float) -> None:
    if not 0.0 < low < high:
        raise ValueError(f"noise levels must satisfy 0 < sigma_min < sigma_max, got {path}")


@dataclass(frozen=True, kw_only=True)
class VP(Path):
    """Variance-preserving SDE, eq. (1)."""

    beta_min: float = 0.1  # noise rate at t = 0
    beta_max: float = 20.0  # noise rate at t = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta_min <= self.beta_max or self.beta_max == 0.0:
            raise ValueError(f"noise rates must satisfy 0 <= beta_min <= beta_max and not both be 0, got {self}")

    def log_alpha(self, t: Times) -> Any:
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Times) -> Any:
        return namespace(t).exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Any:
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(2.0 * self.log_alpha(t)))


@dataclass(frozen=True, kw_only=True)
class SubVP(VP):
    """Sub-variance-preserving SDE, eq. (2): variance below VP's at every t."""

    def sigma(self, t: Times) -> Any:
        return -namespace(t).expm1(2.0 * self.log_alpha(t))


@dataclass(frozen=True, kw_only=True)
class VE(Path):
    """Variance-exploding SDE, eq. (3)."""

    sigma_min: float = 0.01  # noise left at t = 0
    sigma_max: float = 50.0  # noise at t = 1, about the largest distance between two data points

    def __post_init__(self) -> None:
        _check_levels(self, self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return 0.0  # σ(0) > 0

    def alpha(self, t: Times) -> Any:
        return namespace(t).ones_like(t)

    def sigma(self, t: Times) -> Any:
        return self.sigma_min * namespace(t).exp(t * np.log(self.sigma_max / self.sigma_min))

    def input_scale(self, t: Times) -> Any:
        return 1.0 / namespace(t).sqrt(1.0 + self.sigma(t) ** 2)


@dataclass(frozen=True, kw_only=True)
class DDPMLinear(Path):
    """DDPM's T betas, linear from `beta_start` to `beta_end`, eq. (4).

    ᾱ_i sits at t = i/T (i = 0 is data); between those points log ᾱ is linear, so the path is defined for every t.
    """

    steps: int = 1000  # T
    beta_start: float = 1e-4  # β_1
    beta_end: float = 0.02  # β_T

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1 over at least 2 steps, got {self}")

    @property
    def t_min(self) -> float:
        return 1.0 / self.steps  # the paper's i = 1

    @cached_property
    def log_alpha_bar(self) -> Float[np.ndarray, "steps_plus_1"]:
        """log ᾱ_0 = 0, log ᾱ_1, …, log ᾱ_T."""
        betas = np.linspace(self.beta_start, self.beta_end, self.steps, dtype=np.float64)
        return np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])

    def _interpolated(self, t: Times) -> Any:
        xp = namespace(t)
        position = xp.asarray(t) * self.steps  # not clipped: at t = 1 the clip's own derivative would be ½
        index = xp.clip(xp.floor(position), 0, self.steps - 1).astype("int32")
        table = xp.asarray(self.log_alpha_bar, position.dtype)
        # Slopes are tabulated on the host: neighbouring float32 sums would cancel.
        slope = xp.asarray(np.diff(self.log_alpha_bar), position.dtype)
        return table[index] + (position - index) * slope[index]

    def alpha(self, t: Times) -> Any:
        return namespace(t).exp(0.5 * self._interpolated(t))

    def sigma(self, t: Times) -> Any:
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(self._interpolated(t)))

    def snap(self, t: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        index = np.round(np.asarray(t) * self.steps)
        # Times crowded closer than 1/T would repeat: each is at least one above the next, and the last at least 1.
        above_last = np.arange(len(index), 0, -1)
        return (np.maximum.accumulate((index - above_last)[::-1])[::-1].clip(0) + above_last) / self.steps


@dataclass(frozen=True, kw_only=True)
class Cosine(Path):
    """Improved DDPM's cosine schedule, eq. (5), continuous in t; α(1) = 0, so the terminal SNR is exactly zero."""

    s: float = 0.008  # offset that keeps the first noise level visible on 8-bit pixels

    def __post_init__(self) -> None:
        if self.s < 0.0:
            raise ValueError(f"s={self.s} must be at least 0")

    def alpha(self, t: Times) -> Any:
        # cos(π/2·(t+s)/(1+s)) = sin(π/2·(1−t)/(1+s)): exactly 0 at t = 1, with its slope, where the cosine is not
        return namespace(t).sin(0.5 * np.pi * (1.0 - t) / (1.0 + self.s)) / np.cos(self._start)

    def sigma(self, t: Times) -> Any:
        xp = namespace(t)
        # cos²a₀ − cos²a = sin(a+a₀)·sin(a−a₀), with a − a₀ formed exactly from t
        step = 0.5 * np.pi * t / (1.0 + self.s)
        return xp.sqrt(xp.sin(step + 2.0 * self._start) * xp.sin(step)) / np.cos(self._start)

    @property
    def _start(self) -> float:
        """a₀, the angle at t = 0."""
        return 0.5 * np.pi * self.s / (1.0 + self.s)


@dataclass(frozen=True, kw_only=True)
class EDM(Path):
    """EDM's path, eq. (6): time is the noise level itself, scaled to [0, 1]."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_levels(self, self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return 0.0  # σ(0) > 0

    def alpha(self, t: Times) -> Any:
        return namespace(t).ones_like(t)

    def sigma(self, t: Times) -> Any:
        return self.sigma_min + t * (self.sigma_max - self.sigma_min)

    def input_scale(self, t: Times) -> Any:
        return 1.0 / namespace(t).sqrt(1.0 + self.sigma(t) ** 2)


@dataclass(frozen=True, kw_only=True)
class Rectified(Path):
    """Straight lines, eq. (7): rectified flow, and with `sigma_min` > 0 the conditional OT path of flow matching."""

    sigma_min: float = 0.0  # noise left at t = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma_min < 1.0:
            raise ValueError(f"sigma_min={self.sigma_min} is not in [0, 1)")

    def alpha(self, t: Times) -> Any:
        return 1.0 - t

    def sigma(self, t: Times) -> Any:
        return self.sigma_min + (1.0 - self.sigma_min) * t
