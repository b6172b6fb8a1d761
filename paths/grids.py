"""Where on the path a solver stops: N + 1 knots from noise to data, computed on the host in float64.

    uniform        tᵢ = (N−i)/N
    leading        tᵢ = t_min + (N−1−i)/N                          DDIM's public code: steps 1, 1 + T/N, …
    quadratic      tᵢ = ((N−i)/N)²                                 DDIM, 2010.02502 app. D.2
    cosine         tᵢ = 1 − cos(π/2·(N−i)/N)
    karras         σᵢ = (σ_max^(1/ρ) + i/(N−1)·(σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ   EDM, 2206.00364 eq. 5
    uniform_log_snr   λᵢ evenly spaced                             DPM-Solver, 2206.00927 §3.3
    shifted        uᵢ ← s·uᵢ/(1 + (s−1)uᵢ),  u = σ/(α+σ) over its first value      SD3, 2403.03206 eq. 23

N steps are N network calls: at knots 0 … N−1. The last knot is clean data, σ = 0, even on a path whose σ(0) is not
(VE, EDM), so the last step returns the network's estimate of x₀ and leaves no noise in the sample.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from paths.path import Path

F64 = np.ndarray


@dataclass(frozen=True)
class Knots:
    """A grid laid on a path. `t`, `alpha`, `sigma`: float64 [N+1], noise first, data last."""

    t: Float[F64, "n_plus_1"]
    alpha: Float[F64, "n_plus_1"]
    sigma: Float[F64, "n_plus_1"]

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    @property
    def noisy(self) -> "Knots":
        """All knots but the last."""
        return Knots(self.t[:-1], self.alpha[:-1], self.sigma[:-1])


def between(path: Path, first: float, last: float, steps: int) -> Knots:
    """Knots evenly spaced in log-SNR that end at `last` as the path is there, with noise: no step lands on data."""
    log_snr = np.linspace(float(path.log_snr(first)), float(path.log_snr(last)), steps + 1)
    t = np.concatenate([[first], _times_of_log_snr(path, log_snr[1:-1]), [last]])
    return Knots(t, np.asarray(path.alpha(t)), np.asarray(path.sigma(t)))


@dataclass(frozen=True, kw_only=True)
class Grid(ABC):
    """Base of all grids. A new one defines `times(path, steps, t_max)`: N times, descending, without the final 0."""

    @abstractmethod
    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]: ...

    def knots(self, path: Path, steps: int, t_max: float | None = None) -> Knots:
        """Lays the grid on `path`.

        Args:
          steps: N, the number of steps and of network calls of a one-call solver.
          t_max: where to start, the path's own t_max by default.

        Raises:
          ValueError: fewer than one step, or more steps than a discrete path has times.
        """
        if steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got steps={steps}")
        t_max = path.t_max if t_max is None else t_max
        t = np.asarray(self.times(path, steps, t_max), np.float64)
        if t[0] > t_max:
            raise ValueError(f"{self} starts at t={t[0]:g}, but the network may be asked up to t={t_max:g}")
        t = path.snap(t)
        if len(t) != steps or np.any(np.diff(t) >= 0) or t[0] > 1 or t[-1] < 0:
            raise ValueError(
                f"{self} on {path} gives no {steps} distinct descending times in [0, 1]; "
                "a discrete path allows at most as many steps as it was trained with"
            )
        alpha = np.append(path.alpha(t), path.alpha(0.0))
        return Knots(np.append(t, 0.0), alpha, np.append(path.sigma(t), 0.0))


def _remaining(steps: int) -> Float[F64, "n"]:
    """(N−i)/N for i = 0 … N−1."""
    return np.arange(steps, 0, -1) / steps


@dataclass(frozen=True, kw_only=True)
class Uniform(Grid):
    """Evenly spaced times."""

    start: float = 1.0  # first time, as a fraction of the path's last

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        return self.start * t_max * _remaining(steps)


@dataclass(frozen=True, kw_only=True)
class Leading(Grid):
    """Evenly spaced times whose last is the path's first noise level, and whose first falls short of t_max by 1/N.

    The last step then removes hardly any noise. On `Uniform` it removes that of t = 1/N at once: images come out
    smooth, and noise that a solver added too much (σ̂ of DDIM's table 1) is taken off again.
    """

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        return np.minimum(path.t_min + t_max * (_remaining(steps) - 1.0 / steps), t_max)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Grid):
    """Times that crowd towards data. `start=0.8` is the paper's variant for CIFAR-10."""

    start: float = 1.0  # first time, as a fraction of the path's last

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        return self.start * t_max * _remaining(steps) ** 2


@dataclass(frozen=True, kw_only=True)
class Cosine(Grid):
    """Times that crowd towards data, evenly spaced near noise."""

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        return t_max * (1.0 - np.cos(0.5 * np.pi * _remaining(steps)))


@dataclass(frozen=True, kw_only=True)
class Karras(Grid):
    """EDM's noise levels, read as σ/α on any path. None takes the path's own end (at most `80`, at least `0.002`)."""

    rho: float = 7.0  # larger: more steps near data
    sigma_min: float | None = None  # last noise level before data
    sigma_max: float | None = None  # first noise level

    def __post_init__(self) -> None:
        levels = [level for level in (self.sigma_min, self.sigma_max) if level is not None]
        if self.rho <= 0.0 or min(levels, default=1.0) <= 0.0 or levels != sorted(levels):
            raise ValueError(f"rho and the noise levels must be above 0, sigma_min at most sigma_max, got {self}")

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        low = self.sigma_min if self.sigma_min is not None else max(0.002, _noise(path, path.t_min))
        high = self.sigma_max if self.sigma_max is not None else min(80.0, _noise(path, t_max))
        ramp = np.linspace(high ** (1 / self.rho), low ** (1 / self.rho), steps)
        return _times_of_log_snr(path, -2.0 * self.rho * np.log(ramp))


@dataclass(frozen=True, kw_only=True)
class UniformLogSNR(Grid):
    """Evenly spaced log-SNR, between the path's ends or ±`limit` nats, whichever is nearer."""

    limit: float = 13.8  # |λ| at which a path that reaches ±∞ is cut; 13.8 is α/σ ≈ 1e-3

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        first = max(float(path.log_snr(t_max)), -self.limit)
        last = min(float(path.log_snr(path.t_min)), self.limit)
        return _times_of_log_snr(path, np.linspace(first, last, steps))


@dataclass(frozen=True, kw_only=True)
class Shifted(Grid):
    """Another grid moved towards noise for large images, or towards data: its σ/α times `factor`, in mid-range.

    On the rectified path this is SD3's shift exactly. u is measured in units of its first value, so that both ends
    stay where they are on paths whose first σ/α is finite.
    """

    base: Grid = field(default_factory=Uniform)
    factor: float = 3.0  # s: √(pixels/pixels the schedule was made for); above 1 more steps at high noise

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor={self.factor} is not positive")

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        t = np.asarray(self.base.times(path, steps, t_max), np.float64)
        u = np.asarray(path.sigma(t) / (path.alpha(t) + path.sigma(t)))
        share = u / u[0]
        moved = u[0] * self.factor * share / (1.0 + (self.factor - 1.0) * share)
        with np.errstate(divide="ignore"):
            log_snr = 2.0 * (np.log1p(-moved) - np.log(moved))
        return np.append(t[:1], _times_of_log_snr(path, log_snr[1:]))


@dataclass(frozen=True, kw_only=True)
class Explicit(Grid):
    """Times given one by one, descending: any sub-sequence of a discrete path, as `tuple(i / T for i in tau)`."""

    at: tuple[float, ...]

    def times(self, path: Path, steps: int, t_max: float) -> Float[F64, "n"]:
        if steps != len(self.at):
            raise ValueError(f"the explicit grid holds {len(self.at)} times, but steps={steps}")
        return np.asarray(self.at, np.float64)


def _noise(path: Path, t: float) -> float:
    """σ/α."""
    return float(np.exp(-0.5 * path.log_snr(t)))


def _times_of_log_snr(path: Path, log_snr: Float[F64, "n"]) -> Float[F64, "n"]:
    return np.asarray(path.time_of_log_snr(log_snr), np.float64)
