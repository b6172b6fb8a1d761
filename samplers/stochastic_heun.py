"""Heun's method on the reverse SDE: of weak order 2, because its noise does not depend on x.

With f = u + ½w·ε̂/σ and w as in samplers/reverse_sde.py (2011.13456, eq. 6 and app. D), h = t − t' > 0:

    (1)  x̃ = x − h·f(x, t) + √W·z;   x' = x − h/2·(f(x, t) + f(x̃, t')) + √W·z
    (2)  W = h·(w(t) + 4w(t − h/2) + w(t'))/6,  the variance of the noise over the step

Kloeden & Platen, Numerical Solution of Stochastic Differential Equations (1992), for additive noise.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.reverse_sde import AnyDiffusion, drift_coefficients
from samplers.singlestep import Calls, Singlestep, ends, terms


@dataclass(frozen=True, kw_only=True)
class StochasticHeun(AnyDiffusion, Singlestep):
    """Stochastic Heun: weak order 2, two network calls a step."""

    @property
    def stated_order(self) -> int:
        return 2

    @property
    def calls_per_step(self) -> int:
        return 2

    def calls(self, path: Path, knots: Knots) -> Calls:
        x, (D1, D2), (z,) = terms(knots.steps, calls=2, noises=1)
        here, there = ends(knots)
        h = here.t - there.t
        w, w_middle, w_next = (self.w(path, t) for t in (here.t, here.t - h / 2, there.t))
        noise = np.sqrt(h * (w + 4.0 * w_middle + w_next) / 6.0) * z
        a, b = drift_coefficients(path, here.t, w)
        f1 = a * x + b * D1
        y = x - h * f1 + noise
        a, b = drift_coefficients(path, there.t, w_next)
        f2 = a * y + b * D2
        return Calls(t=[here.t, there.t], y=[x, y], x=x - h / 2 * (f1 + f2) + noise)
