"""DDIM, and the family between it and DDPM (Song et al. 2010.02502), on any path.

With (α, σ) at t, (α', σ') at the next time, x̂₀ = D(x, t) and ε̂ = (x − α·x̂₀)/σ:

    (1)  x' = α'·x̂₀ + √(σ'² − s²)·ε̂ + s·z                                                      eq. 12
    (2)  s = η·σ'·√(1 − q²),  q = ασ'/(α'σ);  on a VP path this is the paper's σ_τ(η)             eq. 16
    (3)  σ̂ = √(σ² − (α/α')²σ'²) in place of s before z, and η = 1 under the root     app. D.3, σ̂ of table 1

σ̂ is DDPM with its larger variance; it is not η = 1, and in few steps far worse than any η. η = 0 is the
probability-flow ODE's exponential Euler step; η = 1 is DDPM with variance β̃. The noisy end's α divides nothing, so it
may be 0.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class DDIM(Multistep):
    """DDIM(η): order 1 (weak for η > 0), one network call a step."""

    eta: float = 0.0  # 0 deterministic, 1 ancestral
    hat: bool = False  # σ̂ of the paper's table 1 as the noise; eta must be 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} is not in [0, 1]")
        if self.hat and self.eta != 1:
            raise ValueError(f"hat=True is defined for eta=1, not eta={self.eta}")

    @property
    def stated_order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def table(self, path: Path, knots: Knots) -> Table:
        alpha, alpha_next = knots.alpha[:-1], knots.alpha[1:]
        sigma, sigma_next = knots.sigma[:-1], knots.sigma[1:]
        q = alpha * sigma_next / (alpha_next * sigma)
        noise = self.eta * sigma_next * np.sqrt(np.maximum(1.0 - q**2, 0.0))
        along = np.sqrt(np.maximum(sigma_next**2 - noise**2, 0.0)) / sigma
        if self.hat:
            noise = np.sqrt(np.maximum(sigma**2 - (alpha / alpha_next * sigma_next) ** 2, 0.0))
        return Table(A=along, B=(alpha_next - along * alpha)[:, None], S=noise)
