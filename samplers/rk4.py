"""The classical Runge-Kutta method on the probability-flow ODE (2011.13456, eq. 13), in the path's own time t.

    (1)  u₁ = u(x, t);  u₂ = u(x + h/2·u₁, t + h/2);  u₃ = u(x + h/2·u₂, t + h/2);  u₄ = u(x + h·u₃, t')
    (2)  x' = x + h/6·(u₁ + 2u₂ + 2u₃ + u₄),   h = t' − t

u as in samplers/euler.py.
"""

from dataclasses import dataclass

from paths.grids import Knots
from paths.path import Path
from samplers.euler import velocity_coefficients
from samplers.singlestep import Calls, Singlestep, ends, terms


@dataclass(frozen=True, kw_only=True)
class RK4(Singlestep):
    """RK4 on the ODE: order 4, four network calls a step."""

    @property
    def stated_order(self) -> int:
        return 4

    @property
    def calls_per_step(self) -> int:
        return 4

    def calls(self, path: Path, knots: Knots) -> Calls:
        x, D, _ = terms(knots.steps, calls=4)
        here, there = ends(knots)
        h = there.t - here.t
        times = [here.t, here.t + h / 2, here.t + h / 2, there.t]
        y, u = [], []
        for j, share in enumerate((0.0, 0.5, 0.5, 1.0)):
            y.append(x + share * h * u[j - 1] if j else x)
            a, b = velocity_coefficients(path, times[j])
            u.append(a * y[j] + b * D[j])
        return Calls(t=times, y=y, x=x + h / 6 * (u[0] + 2 * u[1] + 2 * u[2] + u[3]))
