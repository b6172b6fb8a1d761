"""Euler-Maruyama on the reverse SDE, with any diffusion between the ODE and the SDE (2011.13456, eq. 6 and app. D).

Time runs from noise to data, h = t − t' > 0; u is the ODE's velocity, s = −ε̂/σ the score:

    (1)  dx = [u − ½w·s] dt + √w dw̄,  the same marginals for every w(t) ≥ 0        2011.13456 app. D; 2401.08740 §2
    (2)  x' = x − h·(u + ½w·ε̂/σ) + √(hw)·z

w = ν·g² is the path's own diffusion: ν = 1 the reverse SDE of score SDE, ν = 0 the ODE. w = ν·σ stays finite where
α = 0, as on the rectified and the cosine path at t = 1, where g is not.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.euler import velocity_coefficients
from samplers.multistep import Multistep, Table
from samplers.solver import Solver


def drift_coefficients(path: Path, t: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of u + ½w·ε̂/σ = a·x + b·x̂₀."""
    a, b = velocity_coefficients(path, t)
    half = 0.5 * w / np.asarray(path.sigma(t)) ** 2
    return a + half, b - half * np.asarray(path.alpha(t))


@dataclass(frozen=True, kw_only=True)
class AnyDiffusion(Solver):
    """What solvers of (1) share: the choice of w."""

    NAME = ""

    strength: float = 1.0  # ν: 0 the ODE, 1 the reverse SDE, above 1 more noise still
    diffusion: Literal["g", "sigma"] = "g"  # what ν multiplies: the path's g², or σ

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength={self.strength} is negative")

    @property
    def stochastic(self) -> bool:
        return self.strength > 0

    def w(self, path: Path, t: np.ndarray) -> np.ndarray:
        """w(t) of (1).

        Raises:
          ValueError: it is infinite at one of the times.
        """
        if self.diffusion == "sigma":
            return self.strength * np.asarray(path.sigma(t))
        with np.errstate(divide="ignore"):
            w = self.strength * np.asarray(path.diffusion_squared(t))
        if not np.all(np.isfinite(w)):
            raise ValueError(
                f"g is infinite on {path} at t={float(np.ravel(t)[0]):g}, where α = 0: start later "
                "(--grid uniform --grid.start 0.999) or let the diffusion be 'sigma' (--sampler.diffusion sigma)"
            )
        return w


@dataclass(frozen=True, kw_only=True)
class ReverseSDE(AnyDiffusion, Multistep):
    """Euler-Maruyama: weak order 1, one network call a step."""

    @property
    def stated_order(self) -> int:
        return 1

    def table(self, path: Path, knots: Knots) -> Table:
        t, h = knots.t[:-1], -np.diff(knots.t)
        w = self.w(path, t)
        a, b = drift_coefficients(path, t, w)
        return Table(A=1.0 - h * a, B=-(h * b)[:, None], S=np.sqrt(h * w))
