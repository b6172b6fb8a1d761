"""SDE-DPM-Solver++ (Lu et al. 2211.01095; the step η between ODE and SDE after k-diffusion), on any path.

With h = l' − l in l = log(α/σ) and H = (1 + η)h:

    (1)  x' = (σ'/σ)e^(−ηh)·x + α'·(weights of D) + σ'·√(1 − e^(−2ηh))·z
    (2)  2M:  α'(1 − e^(−H))·(D₀ + h/(2h₋₁)·(D₀ − D₋₁))
    (3)  3M:  α'·∫ (1+η)e^(−(1+η)(l'−m))·P(m) dm,  P the parabola through D₀, D₋₁, D₋₂

η = 1 is the paper's reverse SDE, η = 0 the deterministic solver of the same order. The noise is exact for constant D.
"""

from dataclasses import dataclass

from paths.grids import Knots
from paths.path import Path
from samplers.dpmpp import table_2m, table_3m
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


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp2M(SDEDPMpp):
    """SDE-DPM-Solver++(2M), eq. (2): stochastic, one network call a step."""

    NAME = "sde_dpmpp_2m"

    @property
    def stated_order(self) -> int:
        return 2

    def table(self, path: Path, knots: Knots) -> Table:
        return table_2m(knots, self.eta)


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp3M(SDEDPMpp):
    """SDE-DPM-Solver++(3M), eq. (3): stochastic, one network call a step."""

    NAME = "sde_dpmpp_3m"

    @property
    def stated_order(self) -> int:
        return 2 if self.eta else 3

    def table(self, path: Path, knots: Knots) -> Table:
        return table_3m(knots, self.eta)
