"""The reverse-diffusion sampler: the reverse SDE in the same steps as the forward chain (2011.13456, app. D and E).

With a = α/α' and v = σ² − a²σ'² of the forward step x ← a·x' + √v·z, and s = −ε̂/σ the score:

    (1)  x' = (2 − a)·x + v·s + √v·z                                                         eq. 46
    (2)  x' = (2 − a)·x + ½v·s       the probability flow in the same steps                  eq. 47
    (3)  x' = (2 − a)·x + ½(1 + ν)v·s + √(νv)·z    both: ν = 1 is (1), ν = 0 is (2)

2 − a stands for 1/a, so steps must be short in α. An error that (1) forgets, (2) carries to the end.

On VP (1) is the paper's (2 − √(1−β))x + βs + √β·z, on VE x + (σ² − σ'²)s + √(σ² − σ'²)·z.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(Multistep):
    """Reverse diffusion: weak order 1, one network call a step."""

    strength: float = 1.0  # ν of (3): 1 reverse diffusion, 0 the probability flow

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength={self.strength} is negative")

    @property
    def stated_order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return self.strength > 0

    def table(self, path: Path, knots: Knots) -> Table:
        if self.strength < 1 and knots.alpha[0] == 0:
            raise ValueError(
                f"strength={self.strength} does not converge from α = 0 (t={knots.t[0]:g} on {path}), where no step is "
                "short: start later (--grid uniform --grid.start 0.999), or take ddim or euler"
            )
        a = knots.alpha[:-1] / knots.alpha[1:]
        variance = knots.sigma[:-1] ** 2
        v = np.maximum(variance - a**2 * knots.sigma[1:] ** 2, 0.0)
        half = 0.5 * (1.0 + self.strength) * v / variance  # s = −(x − αx̂₀)/σ²
        along = (half * knots.alpha[:-1])[:, None]
        return Table(A=2.0 - a - half, B=along, S=np.sqrt(self.strength * v))
