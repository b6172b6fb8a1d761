"""DEIS, the exponential multistep solver in ε (Zhang & Chen 2204.13902), on any path.

With ρ = σ/α and ε̂ the noise estimate, the probability-flow ODE is d(x/α) = ε̂ dρ:

    (1)  x' = (α'/α)x + α'·Σⱼ Cⱼ·ε̂₋ⱼ,   Cⱼ = ∫_ρ^ρ' ℓⱼ dρ,   j = 0 … order − 1

ℓⱼ are Lagrange polynomials of the last knots in t (tAB-DEIS, the paper's default) or in ρ (ρAB-DEIS). Order 1 is DDIM.
A knot with α = 0 has ρ = ∞: a step from it is DDIM's, written without ρ, and later ones do not look back to it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.exponential import gauss_points, half_log_snr, integral, lagrange, looking_back
from samplers.multistep import Multistep, Table
from samplers.solver import check_order


@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    """DEIS: one network call a step."""

    order: int = 3  # 1 to 3: how many estimates are combined
    polynomial: Literal["t", "rho"] = "t"  # variable of the polynomials

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    @property
    def stated_order(self) -> int:
        return self.order

    def table(self, path: Path, knots: Knots) -> Table:
        ell = half_log_snr(knots)
        with np.errstate(over="ignore"):
            rho = np.exp(-ell)
        nodes = knots.t if self.polynomial == "t" else rho
        C = np.zeros((knots.steps, self.order))
        for steps, used in looking_back(ell, self.order):
            # Integrated over l, in which ρ and t are smooth functions of one size.
            m = gauss_points(ell[steps], ell[steps + 1])
            at_rho = np.exp(-m)
            at = at_rho if self.polynomial == "rho" else np.asarray(path.time_of_log_snr(2.0 * m))
            values = lagrange(nodes[used], at) * -at_rho[:, None]
            C[steps, : used.shape[1]] = integral(values, ell[steps + 1] - ell[steps])
        return eps_table(knots, C)


def eps_table(knots: Knots, C: np.ndarray) -> Table:
    """Eq. (1) as a table whose history holds ε̂: x' = (α'/α)x + α'·Σⱼ Cⱼ·ε̂₋ⱼ, or DDIM's step where α = 0."""
    alpha, sigma, alpha_next, sigma_next = knots.alpha[:-1], knots.sigma[:-1], knots.alpha[1:], knots.sigma[1:]
    B = alpha_next[:, None] * C
    with np.errstate(divide="ignore"):
        A = alpha_next / alpha
    # At α = 0, x = σε̂, and x' = α'x̂₀ + σ'ε̂ would need x̂₀, which ε̂ does not tell there: the history holds x̂₀ instead.
    blind = alpha == 0.0
    A = np.where(blind, sigma_next / sigma, A)
    B[blind] = 0.0
    B[blind, 0] = alpha_next[blind]
    P, Q = np.where(blind, 0.0, 1.0 / sigma), np.where(blind, 1.0, -alpha / sigma)
    return Table(A=A, B=B, S=np.zeros(knots.steps), P=P, Q=Q)
