"""UniPC: UniP with its corrector, at no further network call (Zhao et al. 2302.04867), on any path.

At knot i, x̃ᵢ being UniP's prediction and Dᵢ = D(x̃ᵢ, tᵢ), with the notation of samplers/unip.py for the step i−1 → i:

    (1)  xᵢ = (σᵢ/σᵢ₋₁)xᵢ₋₁ − αᵢ(e^h̄ − 1)·Dᵢ₋₁ − αᵢB(h)·Σₘ c_m/r_m·(Dᵢ₋₁₋ₘ − Dᵢ₋₁),  r = (r₁ … r_(p−1), 1)
    (2)  x̃ᵢ₊₁ = UniP from xᵢ with Dᵢ, Dᵢ₋₁ …

The difference for r = 1 is Dᵢ − Dᵢ₋₁. The corrector raises the order by one. p = 1 takes c₁ = ½ for the solution.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path
from samplers.exponential import decay, half_log_snr
from samplers.kernel import Kernel, Row, Rows
from samplers.solver import Noise, check_order
from samplers.unip import Variant, lags, predictor, weights


@dataclass(frozen=True, kw_only=True)
class UniPC(Kernel):
    """UniPC-p: order p + 1, one network call a step."""

    NAME = "unipc"

    order: int = 2  # p, 1 to 3: order of the predictor
    variant: Variant = "bh2"  # B(h): bh1 is −h, bh2 is e^(−h) − 1

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    @property
    def stated_order(self) -> int:
        return self.order + 1

    def rows(self, path: Path, knots: Knots) -> Rows:
        ell = half_log_snr(knots)
        table = predictor(knots, self.order, self.variant)
        # Row i corrects the step i−1 → i, over Dᵢ, Dᵢ₋₁, …; at the first knot there is nothing to correct.
        A, C = np.ones(knots.steps), np.zeros((knots.steps, self.order + 1))
        A[1:] = knots.sigma[1:-1] / knots.sigma[:-2]
        C[1:, 1] = 1.0 - decay(ell[:-1], 1.0)
        for steps, h, back in lags(ell[:-1], self.order):
            r = np.append(back, np.ones((len(steps), 1)), axis=1)
            differences = weights(h, r, self.variant, solved=r.shape[1] > 1)
            C[steps + 1, 0] = -differences[:, -1]
            C[steps + 1, 1] += differences.sum(axis=1)
            C[steps + 1, 2 : 1 + r.shape[1]] = -differences[:, :-1]
        C *= knots.alpha[:-1, None]
        return {"t": knots.t[:-1], "A": table.A, "B": table.B, "A_corrector": A, "B_corrector": C}

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        return {"x": x, "corrected": x, "said": (jnp.zeros_like(x),) * self.order}

    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        said = (denoise(carry["x"], row["t"]), *carry["said"])
        x = row["A_corrector"] * carry["corrected"]
        for j, value in enumerate(said):
            x = x + row["B_corrector"][j] * value
        predicted = row["A"] * x
        for j, value in enumerate(said[:-1]):
            predicted = predicted + row["B"][j] * value
        return {"x": predicted, "corrected": x, "said": said[:-1]}

    def landing(self, row: Row, t: Float[Array, ""]) -> Row:
        clean = {name: jnp.zeros_like(value) for name, value in row.items()}
        return clean | {"t": t, "B": clean["B"].at[0].set(1.0)}
