"""DPM-Solver, singlestep, in ε (Lu et al. 2206.00927, alg. 1-2), on any path.

With h = l' − l in l = log(α/σ), ε = ε̂(x, l), and points l + r·h within the step:

    (1)  2S:  u = (α₁/α)x − σ₁(e^(rh) − 1)ε at r = ½
              x' = (α'/α)x − σ'(e^h − 1)ε − σ'/(2r)(e^h − 1)(ε̂(u) − ε)
    (2)  3S:  u₁ as u at r₁ = ⅓;   u₂ = (α₂/α)x − σ₂(e^(r₂h) − 1)ε − σ₂r₂/r₁((e^(r₂h) − 1)/(r₂h) − 1)(ε̂(u₁) − ε)
              x' = (α'/α)x − σ'(e^h − 1)ε − σ'/r₂((e^h − 1)/h − 1)(ε̂(u₂) − ε),   r₂ = ⅔

The first terms are DDIM's step, αx̂₀ + σε̂ at the new level, and so written. From α = 0 (l = −∞) nothing else is left.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.singlestep import Calls, End, Singlestep, at, ends, noise_estimate, terms


@dataclass(frozen=True, kw_only=True)
class SinglestepDPM(Singlestep):
    """Base of the two: the points within a step."""

    @property
    def stated_order(self) -> int:
        return self.calls_per_step

    @property
    @abstractmethod
    def calls_per_step(self) -> int: ...

    def _inside(self, path: Path, here: End, there: End) -> tuple[np.ndarray, np.ndarray, list[End]]:
        """Where h is finite, h, and the ends at r = 1/K … (K−1)/K; all at l' where it is not."""
        first, last = path.log_snr(here.t) / 2.0, path.log_snr(there.t) / 2.0
        finite = np.isfinite(first)
        h = last - np.where(finite, first, last)
        shares = np.arange(1, self.calls_per_step) / self.calls_per_step
        times = [np.where(h > 0, path.time_of_log_snr(2.0 * (last - (1.0 - r) * h)), there.t) for r in shares]
        return finite, np.where(finite, h, 1.0), [at(path, t) for t in times]


@dataclass(frozen=True, kw_only=True)
class DPM2S(SinglestepDPM):
    """DPM-Solver-2, eq. (1): order 2, two network calls a step."""

    NAME = "dpm_2s"

    @property
    def calls_per_step(self) -> int:
        return 2

    def calls(self, path: Path, knots: Knots) -> Calls:
        x, (D1, D2), _ = terms(knots.steps, calls=2)
        here, there = ends(knots)
        finite, h, (middle,) = self._inside(path, here, there)
        eps = noise_estimate(x, D1, here)
        u = middle.alpha * D1 + middle.sigma * eps
        change = noise_estimate(u, D2, middle) - eps
        weight = np.where(finite, np.expm1(h), 0.0)
        return Calls(
            t=[here.t, middle.t],
            y=[x, u],
            x=there.alpha * D1 + there.sigma * eps - there.sigma * weight * change,
        )


@dataclass(frozen=True, kw_only=True)
class DPM3S(SinglestepDPM):
    """DPM-Solver-3, eq. (2): order 3, three network calls a step."""

    NAME = "dpm_3s"

    @property
    def calls_per_step(self) -> int:
        return 3

    def calls(self, path: Path, knots: Knots) -> Calls:
        x, (D1, D2, D3), _ = terms(knots.steps, calls=3)
        here, there = ends(knots)
        finite, h, (one, two) = self._inside(path, here, there)
        eps = noise_estimate(x, D1, here)
        u1 = one.alpha * D1 + one.sigma * eps
        change = noise_estimate(u1, D2, one) - eps
        r1, r2 = 1.0 / 3.0, 2.0 / 3.0
        weight = np.where(finite, r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1.0), 0.0)
        u2 = two.alpha * D1 + two.sigma * eps - two.sigma * weight * change
        change = noise_estimate(u2, D3, two) - eps
        weight = np.where(finite, (np.expm1(h) / h - 1.0) / r2, 0.0)
        return Calls(
            t=[here.t, one.t, two.t],
            y=[x, u1, u2],
            x=there.alpha * D1 + there.sigma * eps - there.sigma * weight * change,
        )
