"""SDE-DPM-Solver++ (Lu et al. 2211.01095 §5; the step η between ODE and SDE after k-diffusion), on any path.

With h = l' − l in l = log(α/σ) and H = (1 + η)h:

    (1)  x' = (σ'/σ)e^(−ηh)·x + α'·(weights of D) + σ'·√(1 − e^(−2ηh))·z
    (2)  2M:  α'(1 − e^(−H))·(D₀ + h/(2h₋₁)·(D₀ − D₋₁))
    (3)  3M:  α'·∫ (1+η)e^(−(1+η)(l'−m))·P(m) dm,  P the parabola through D₀, D₋₁, D₋₂

η = 1 is the paper's reverse SDE, η = 0 the deterministic solver of the same order. The noise is exact for constant D.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.dpmpp import ratio_to_last_step
from samplers.exponential import adams_weights, decay, half_log_snr
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp(Multistep):
    """Base of the two: how much noise."""

    NAME = ""

    eta: float = 1.0  # 0 the ODE, 1 the reverse SDE

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"eta={self.eta} is negative")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def _scale_and_noise(self, knots: Knots) -> tuple[np.ndarray, np.ndarray]:
        """A and S of (1)."""
        ell = half_log_snr(knots)
        scale = knots.sigma[1:] / knots.sigma[:-1] * decay(ell, self.eta)
        return scale, knots.sigma[1:] * np.sqrt(1.0 - decay(ell, 2.0 * self.eta))


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp2M(SDEDPMpp):
    """SDE-DPM-Solver++(2M), eq. (2): stochastic, one network call a step."""

    NAME = "sde_dpmpp_2m"

    @property
    def stated_order(self) -> int:
        return 2

    def table(self, path: Path, knots: Knots) -> Table:
        ell = half_log_snr(knots)
        scale, noise = self._scale_and_noise(knots)
        first = knots.alpha[1:] * (1.0 - decay(ell, 1.0 + self.eta))
        slope = 0.5 * ratio_to_last_step(ell)
        return Table(A=scale, B=np.stack([first * (1.0 + slope), -first * slope], axis=1), S=noise)


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp3M(SDEDPMpp):
    """SDE-DPM-Solver++(3M), eq. (3): stochastic, one network call a step."""

    NAME = "sde_dpmpp_3m"

    @property
    def stated_order(self) -> int:
        return 2 if self.eta else 3

    def table(self, path: Path, knots: Knots) -> Table:
        scale, noise = self._scale_and_noise(knots)
        weights = adams_weights(half_log_snr(knots), 3, 1.0 + self.eta)
        return Table(A=scale, B=knots.alpha[1:, None] * weights, S=noise)
