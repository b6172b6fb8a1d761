"""Euler's method on the probability-flow ODE (Song et al. 2011.13456, eq. 13), in the path's own time t.

    (1)  dx/dt = u = α̇·x̂₀ + σ̇·ε̂ = (σ̇/σ)x + (α̇ − ασ̇/σ)x̂₀
    (2)  x' = x + (t' − t)·u(x, t)

On the rectified path (2) is DDIM's step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.multistep import Multistep, Table


def velocity_coefficients(path: Path, t: Any) -> tuple[Any, Any]:
    """(a, b) of u = a·x + b·x̂₀, eq. (1), at host or device times with σ > 0."""
    alpha_dot, sigma_dot = path.derivatives(t)
    a = sigma_dot / path.sigma(t)
    return a, alpha_dot - path.alpha(t) * a


@dataclass(frozen=True, kw_only=True)
class Euler(Multistep):
    """Euler on the ODE: order 1, one network call a step."""

    @property
    def stated_order(self) -> int:
        return 1

    def table(self, path: Path, knots: Knots) -> Table:
        a, b = velocity_coefficients(path, knots.t[:-1])
        step = np.diff(knots.t)
        return Table(A=1.0 + step * a, B=(step * b)[:, None], S=np.zeros(knots.steps))
