"""iPNDM: Adams-Bashforth with constant weights on ε, then DDIM's transfer (Liu et al. 2202.09778).

    (1)  ε̄ = ε̂₀;  (3ε̂₀ − ε̂₋₁)/2;  (23ε̂₀ − 16ε̂₋₁ + 5ε̂₋₂)/12;  (55ε̂₀ − 59ε̂₋₁ + 37ε̂₋₂ − 9ε̂₋₃)/24
    (2)  x' = (α'/α)x + α'(σ'/α' − σ/α)·ε̄   DDIM's transfer

The weights are those of even steps in the variable of integration, which no grid has in σ/α: of second order whatever
the number of terms, as the paper states of PNDM. The first steps, which lack a history, are Adams-Bashforth steps of
lower order (2204.13902) in place of the paper's pseudo Runge-Kutta steps of four calls.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.deis import eps_table
from samplers.multistep import Multistep, Table
from samplers.solver import check_order

ADAMS_BASHFORTH = (
    np.asarray([1.0]),
    np.asarray([3.0, -1.0]) / 2.0,
    np.asarray([23.0, -16.0, 5.0]) / 12.0,
    np.asarray([55.0, -59.0, 37.0, -9.0]) / 24.0,
)


@dataclass(frozen=True, kw_only=True)
class IPNDM(Multistep):
    """iPNDM: lower orders at the first steps, one network call a step."""

    order: int = 4  # 1 to 4: how many estimates are combined

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @property
    def stated_order(self) -> int:
        return min(self.order, 2)

    def table(self, path: Path, knots: Knots) -> Table:
        C = np.zeros((knots.steps, self.order))
        blind = int(knots.alpha[0] == 0.0)  # the first knot says nothing of ε as α = 0; nobody looks back to it
        for i in range(knots.steps):
            weights = ADAMS_BASHFORTH[max(0, min(self.order, i + 1 - blind) - 1)]
            C[i, : len(weights)] = weights
        return eps_table(knots, C * rho_steps(knots)[:, None])


def rho_steps(knots: Knots) -> np.ndarray:
    """σ'/α' − σ/α of each step; 0 in place of −∞."""
    with np.errstate(divide="ignore"):
        change = np.diff(knots.sigma / knots.alpha)
    return np.where(np.isfinite(change), change, 0.0)
