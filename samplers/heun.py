"""Heun's method on the probability-flow ODE (2011.13456, eq. 13), in the path's own time t.

    (1)  x̃ = x + (t' − t)·u(x, t);   x' = x + (t' − t)/2·(u(x, t) + u(x̃, t'))

u as in samplers/euler.py. EDM's Heun, in σ/α and with churn, is samplers/edm.py.
"""

from dataclasses import dataclass

from paths.grids import Knots
from paths.path import Path
from samplers.euler import velocity_coefficients
from samplers.singlestep import Calls, Singlestep, ends, terms


@dataclass(frozen=True, kw_only=True)
class Heun(Singlestep):
    """Heun on the ODE: order 2, two network calls a step."""

    @property
    def stated_order(self) -> int:
        return 2

    @property
    def calls_per_step(self) -> int:
        return 2

    def calls(self, path: Path, knots: Knots) -> Calls:
        x, (D1, D2), _ = terms(knots.steps, calls=2)
        here, there = ends(knots)
        h = there.t - here.t
        a, b = velocity_coefficients(path, here.t)
        u1 = a * x + b * D1
        y = x + h * u1
        a, b = velocity_coefficients(path, there.t)
        u2 = a * y + b * D2
        return Calls(t=[here.t, there.t], y=[x, y], x=x + h / 2 * (u1 + u2))
