"""DPM-Solver++ (Lu et al. 2211.01095), data prediction, deterministic, on any path.

With h = l' − l in l = log(α/σ), Dⱼ the estimates of this and the last knots, h₋₁ and h₋₂ the steps before:

    (1)  1S:  x' = (σ'/σ)x + α'(1 − e^(−h))·D₀                                                     eq. 8, DDIM
    (2)  2M:  x' = (σ'/σ)x + α'(1 − e^(−h))·(D₀ + h/(2h₋₁)·(D₀ − D₋₁))                             alg. 2
    (3)  3M:  x' = (σ'/σ)x + α'·∫ e^(−(l'−m))·P(m) dm,  P the parabola through D₀, D₋₁, D₋₂         eq. 8, n = 3

(3) integrates the parabola exactly (samplers/exponential.py). The formula of the public codes (coefficient φ₃ times D₂)
takes half of its last term, since their D₂ is already h²D''/2, and is of second order only: tests/test_orders.py.
The first step is of first order and the second of second; both lie in noise, where D hardly changes.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.exponential import adams_weights, decay, half_log_snr
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class DPMpp1S(Multistep):
    """DPM-Solver++ of order 1, eq. (1): the same table as DDIM(0)."""

    NAME = "dpmpp_1s"

    @property
    def stated_order(self) -> int:
        return 1

    def table(self, path: Path, knots: Knots) -> Table:
        ell = half_log_snr(knots)
        return Table(
            A=knots.sigma[1:] / knots.sigma[:-1],
            B=(knots.alpha[1:] * (1.0 - decay(ell, 1.0)))[:, None],
            S=np.zeros(knots.steps),
        )


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Multistep):
    """DPM-Solver++(2M), eq. (2): order 2, one network call a step."""

    NAME = "dpmpp_2m"

    @property
    def stated_order(self) -> int:
        return 2

    def table(self, path: Path, knots: Knots) -> Table:
        ell = half_log_snr(knots)
        first = knots.alpha[1:] * (1.0 - decay(ell, 1.0))
        slope = 0.5 * ratio_to_last_step(ell)
        return Table(
            A=knots.sigma[1:] / knots.sigma[:-1],
            B=np.stack([first * (1.0 + slope), -first * slope], axis=1),
            S=np.zeros(knots.steps),
        )


@dataclass(frozen=True, kw_only=True)
class DPMpp3M(Multistep):
    """DPM-Solver++(3M), eq. (3): order 3, one network call a step."""

    NAME = "dpmpp_3m"

    @property
    def stated_order(self) -> int:
        return 3

    def table(self, path: Path, knots: Knots) -> Table:
        return Table(
            A=knots.sigma[1:] / knots.sigma[:-1],
            B=knots.alpha[1:, None] * adams_weights(half_log_snr(knots), 3),
            S=np.zeros(knots.steps),
        )


def ratio_to_last_step(ell: np.ndarray) -> np.ndarray:
    """h/h₋₁ of each step: 0 for the first, and for the one after a step from l = −∞."""
    h = np.diff(ell)
    return np.concatenate([[0.0], h[1:] / h[:-1]]) if len(h) else h
