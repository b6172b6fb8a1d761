"""DDPM's ancestral sampler (Ho et al. 2006.11239), on any path and any sub-sequence of its times.

With (α, σ) at t, (α', σ') at the next time, a = α/α' and σ²ₜₛ = σ² − a²σ'² (the forward step's variance, β on VP):

    (1)  x' = a·σ'²/σ²·x + α'·σ²ₜₛ/σ²·x̂₀ + s·z                                        eq. 7, mean of q(x'|x, x₀)
    (2)  s² = σ²ₜₛσ'²/σ²  (β̃, right for data at a point)   or   s² = σ²ₜₛ  (β, right for Gaussian data)       §3.2

The last step adds no noise.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class DDPM(Multistep):
    """Ancestral sampling: weak order 1, one network call a step."""

    variance: Literal["beta_tilde", "beta"] = "beta_tilde"  # the smaller and the larger variance of (2)

    @property
    def stated_order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return True

    def table(self, path: Path, knots: Knots) -> Table:
        alpha, alpha_next = knots.alpha[:-1], knots.alpha[1:]
        variance, variance_next = knots.sigma[:-1] ** 2, knots.sigma[1:] ** 2
        ratio = alpha / alpha_next
        forward = variance - ratio**2 * variance_next
        noise = forward * variance_next / variance
        if self.variance == "beta":
            noise = np.where(variance_next > 0, forward, 0.0)
        return Table(A=ratio * variance_next / variance, B=(alpha_next * forward / variance)[:, None], S=np.sqrt(noise))
