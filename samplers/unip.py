"""UniP, the predictor of UniPC (Zhao et al. 2302.04867), data prediction, on any path.

With h = l' − l in l = log(α/σ), r_m = (l₋ₘ − l)/h < 0 for the knots behind, D_m = D₋ₘ − D₀, and h̄ = −h:

    (1)  x' = (σ'/σ)x − α'(e^h̄ − 1)·D₀ − α'B(h)·Σₘ a_m/r_m·D_m,   m = 1 … p − 1
    (2)  Σₘ r_m^(k−1) a_m = k!·h̄·φ_(k+1)(h̄)/B(h),  φ₁ = (e^h̄ − 1)/h̄,  φ_(k+1) = (φ_k − 1/k!)/h̄
    (3)  B(h) = h̄ (bh1)  or  e^h̄ − 1 (bh2);  for p = 2 the solution of (2) is replaced by a₁ = ½

B(h) drops out of (1) wherever (2) is solved; then UniP is the exact integral of the polynomial, and UniP-3 is
DPM-Solver++(3M). A knot with α = 0 has l = −∞, and nobody looks back to it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.exponential import half_log_snr
from samplers.multistep import Multistep, Table
from samplers.solver import check_order

Variant = Literal["bh1", "bh2"]


def weights(h: float, r: np.ndarray, variant: Variant, solved: bool) -> np.ndarray:
    """B(h)·a_m/r_m of (1) and (2), without α'.

    Args:
      h: step in l.
      r: r_m of each difference; 1 for the end of the step (the corrector's).
      solved: solve (2); otherwise a = ½ for the one difference there is.
    """
    if len(r) == 0:
        return np.zeros(0)
    B = -h if variant == "bh1" else np.expm1(-h)
    if not solved:
        return B * 0.5 / r
    k = np.arange(1, len(r) + 1)
    phi, right = np.expm1(-h) / -h, []
    for n in k:
        phi = (phi - 1.0 / math.factorial(n)) / -h
        right.append(math.factorial(n) * phi * -h / B)
    return B * np.linalg.solve(r[None, :] ** (k[:, None] - 1), np.asarray(right)) / r


def lags(ell: np.ndarray, i: int, order: int) -> np.ndarray:
    """r_m of the knots that a predictor of `order` looks back to from knot i."""
    back = ell[max(0, i - order + 1) : i][::-1]
    return (back[np.isfinite(back)] - ell[i]) / (ell[i + 1] - ell[i])


def predictor(knots: Knots, order: int, variant: Variant) -> Table:
    """Eq. (1) as a table."""
    ell = half_log_snr(knots)
    B = np.zeros((knots.steps, order))
    for i in range(knots.steps):
        h = ell[i + 1] - ell[i]
        r = lags(ell, i, order)
        differences = weights(h, r, variant, solved=len(r) > 1)
        B[i, 0] = -np.expm1(-h) + differences.sum()
        B[i, 1 : 1 + len(r)] = -differences
    return Table(A=knots.sigma[1:] / knots.sigma[:-1], B=knots.alpha[1:, None] * B, S=np.zeros(knots.steps))


@dataclass(frozen=True, kw_only=True)
class UniP(Multistep):
    """UniP-p: order p, one network call a step."""

    NAME = "unip"

    order: int = 3  # 1 to 3
    variant: Variant = "bh2"  # B(h) of (3)

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    @property
    def stated_order(self) -> int:
        return self.order

    def table(self, path: Path, knots: Knots) -> Table:
        return predictor(knots, self.order, self.variant)
