"""The reverse-diffusion sampler: the reverse SDE in the same steps as the forward chain (2011.13456, app. E).

With a = α/α' and v = σ² − a²σ'² of the forward step x ← a·x' + √v·z, and s = −ε̂/σ the score:

    (1)  x' = (2 − a)·x + v·s + √v·z                                                         eq. 46

On VP this is the paper's (2 − √(1−β))x + βs + √β·z, on VE x + (σ² − σ'²)s + √(σ² − σ'²)·z.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(Multistep):
    """Reverse diffusion: weak order 1, one network call a step."""

    @property
    def stated_order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return True

    def table(self, path: Path, knots: Knots) -> Table:
        a = knots.alpha[:-1] / knots.alpha[1:]
        variance = knots.sigma[:-1] ** 2
        v = np.maximum(variance - a**2 * knots.sigma[1:] ** 2, 0.0)
        # s = −(x − αx̂₀)/σ²
        return Table(A=2.0 - a - v / variance, B=(v * knots.alpha[:-1] / variance)[:, None], S=np.sqrt(v))
