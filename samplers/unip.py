"""UniP, the predictor of UniPC (Zhao et al. 2302.04867), data prediction, on any path.

With h = l' − l in l = log(α/σ), r_m = (l₋ₘ − l)/h < 0 for the knots behind, D_m = D₋ₘ − D₀, and h̄ = −h:

    (1)  x' = (σ'/σ)x − α'(e^h̄ − 1)·D₀ − α'B(h)·Σₘ a_m/r_m·D_m,   m = 1 … p − 1
    (2)  Σₘ r_m^(k−1) a_m = k!·h̄·φ_(k+1)(h̄)/B(h),  φ₁ = (e^h̄ − 1)/h̄,  φ_(k+1) = (φ_k − 1/k!)/h̄
    (3)  B(h) = h̄ (bh1)  or  e^h̄ − 1 (bh2);  for p = 2 the solution of (2) is replaced by a₁ = ½

B(h) drops out of (1) wherever (2) is solved; then UniP is the exact integral of the polynomial, and UniP-3 is
DPM-Solver++(3M). A knot with α = 0 has l = −∞, and nobody looks back to it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from paths.grids import Knots
from paths.path import Path
from samplers.exponential import F64, decay, half_log_snr, looking_back
from samplers.multistep import Multistep, Table
from samplers.solver import check_order

Variant = Literal["bh1", "bh2"]


def weights(h: Float[F64, "n"], r: Float[F64, "n m"], variant: Variant, solved: bool) -> Float[F64, "n m"]:
    """B(h)·a_m/r_m of (1) and (2), without α'.

    Args:
      h: steps in l.
      r: r_m of each difference; 1 for the end of the step (the corrector's).
      solved: solve (2); otherwise a = ½ for the one difference there is.
    """
    B = (-h if variant == "bh1" else np.expm1(-h))[:, None]
    if not solved:
        return B * 0.5 / r
    k = np.arange(1, r.shape[1] + 1)
    phi, right = np.expm1(-h) / -h, np.zeros(r.shape)
    for n in k:
        phi = (phi - 1.0 / math.factorial(n)) / -h
        right[:, n - 1] = math.factorial(n) * phi * -h
    a = np.linalg.solve(r[:, None, :] ** (k[:, None] - 1), (right / B)[..., None])[..., 0]
    return B * a / r


def lags(
    ell: Float[F64, "n_plus_1"], order: int
) -> Iterator[tuple[Int[np.ndarray, " m"], Float[F64, " m"], Float[F64, "m p"]]]:
    """Steps that look back equally far, their h, and r_m of the knots behind."""
    for steps, used in looking_back(ell, order):
        h = ell[steps + 1] - ell[steps]
        yield steps, h, (ell[used[:, 1:]] - ell[steps][:, None]) / h[:, None]


def predictor(knots: Knots, order: int, variant: Variant) -> Table:
    """Eq. (1) as a table."""
    ell = half_log_snr(knots)
    B = np.zeros((knots.steps, order))
    B[:, 0] = 1.0 - decay(ell, 1.0)
    for steps, h, r in lags(ell, order):
        differences = weights(h, r, variant, solved=r.shape[1] > 1)
        B[steps, 0] += differences.sum(axis=1)
        B[steps, 1 : 1 + r.shape[1]] = -differences
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
