"""DPM-Solver++ (Lu et al. 2211.01095), data prediction, deterministic, on any path.

With h = l' − l in l = log(α/σ), Dⱼ the estimates of this and the last knots, h₋₁ and h₋₂ the steps before:

    (1)  1S:  x' = (σ'/σ)x + α'(1 − e^(−h))·D₀      DDIM
    (2)  2M:  x' = (σ'/σ)x + α'(1 − e^(−h))·(D₀ + h/(2h₋₁)·(D₀ − D₋₁))                             alg. 2
    (3)  3M:  x' = (σ'/σ)x + α'·∫ e^(−(l'−m))·P(m) dm,  P the parabola through D₀, D₋₁, D₋₂

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


def table_1(knots: Knots, eta: float = 0.0) -> Table:
    """Eq. (1); with η the noise of samplers/sde_dpmpp.py, eq. (1)."""
    ell = half_log_snr(knots)
    return Table(
        A=knots.sigma[1:] / knots.sigma[:-1] * decay(ell, eta),
        B=(knots.alpha[1:] * (1.0 - decay(ell, 1.0 + eta)))[:, None],
        S=knots.sigma[1:] * np.sqrt(1.0 - decay(ell, 2.0 * eta)),
    )


def table_2m(knots: Knots, eta: float = 0.0) -> Table:
    """Eq. (2). No look back from the first step, nor to a knot with l = −∞: h/h₋₁ is 0 there."""
    table, h = table_1(knots, eta), np.diff(half_log_snr(knots))
    slope = 0.5 * np.append(np.zeros(1), h[1:] / h[:-1])[: len(h), None]
    return table._replace(B=table.B * np.append(1.0 + slope, -slope, axis=1))


def table_3m(knots: Knots, eta: float = 0.0) -> Table:
    """Eq. (3)."""
    weights = adams_weights(half_log_snr(knots), 3, 1.0 + eta)
    return table_1(knots, eta)._replace(B=knots.alpha[1:, None] * weights)


@dataclass(frozen=True, kw_only=True)
class DPMpp1S(Multistep):
    """DPM-Solver++ of order 1, eq. (1): the same table as DDIM(0)."""

    NAME = "dpmpp_1s"

    @property
    def stated_order(self) -> int:
        return 1

    def table(self, path: Path, knots: Knots) -> Table:
        return table_1(knots)


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Multistep):
    """DPM-Solver++(2M), eq. (2): order 2, one network call a step."""

    NAME = "dpmpp_2m"

    @property
    def stated_order(self) -> int:
        return 2

    def table(self, path: Path, knots: Knots) -> Table:
        return table_2m(knots)


@dataclass(frozen=True, kw_only=True)
class DPMpp3M(Multistep):
    """DPM-Solver++(3M), eq. (3): order 3, one network call a step."""

    NAME = "dpmpp_3m"

    @property
    def stated_order(self) -> int:
        return 3

    def table(self, path: Path, knots: Knots) -> Table:
        return table_3m(knots)
