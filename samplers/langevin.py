"""Annealed Langevin dynamics, score SDE's corrector by itself (Song et al. 2011.13456, alg. 4-5, after 1907.05600).

M steps at each knot but the first, with s the score and r the signal-to-noise ratio:

    (1)  x ← x + ε·s(x, t') + √(2ε)·z                                              2011.13456 alg. 4-5
    (2)  ε = 2a²·(r‖z‖/‖s‖)²,  a = α/α' of the move to t' (1 on VE, √(1−β) on VP)   2011.13456 alg. 4-5

The paper's a is that of the next move; here a = 1 for a move from α = 0. At equilibrium a step relaxes a Gaussian by
2r², and 4 such relaxations at least must pass while σ falls e-fold, or the chain is left behind by the noise levels:
2r²·M·steps > 4·log(σ₀/σ_N).

The public code takes ‖z‖ and ‖s‖ as means over the batch, so that a sample there depends on its neighbours. Here both
are the sample's own. Steps that are not adjusted have a bias that no grid removes, and in a few dimensions ‖z‖/‖s‖ has
heavy tails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path, expand
from samplers.kernel import Kernel, Row, Rows
from samplers.solver import Noise


def check_langevin(corrector_steps: int, snr: float, fewest: int) -> None:
    """Raises a ValueError where M or r is out of range."""
    if corrector_steps < fewest or not snr > 0:
        raise ValueError(f"corrector_steps={corrector_steps} must be at least {fewest} and snr={snr} above 0")


def langevin_rows(knots: Knots) -> dict[str, np.ndarray]:
    """t', α', σ' and a of (2), for each move."""
    scale = np.where(knots.alpha[:-1] > 0, knots.alpha[:-1] / knots.alpha[1:], 1.0)
    return {"t": knots.t[1:], "alpha": knots.alpha[1:], "sigma": knots.sigma[1:], "scale": scale}


def langevin(
    denoise: Denoise, x: Float[Array, "n *s"], row: Row, zs: Sequence[Float[Array, "n *s"]], snr: float
) -> Float[Array, "n *s"]:
    """One step (1) for each noise of `zs`, at the knot of a row of `langevin_rows`."""
    for z in zs:
        score = (row["alpha"] * denoise(x, row["t"]) - x) / row["sigma"] ** 2
        ratio = _norm(z) / jnp.maximum(_norm(score), jnp.finfo(x.dtype).tiny)
        size = expand(2.0 * (row["scale"] * snr * ratio) ** 2, x)
        x = x + size * score + jnp.sqrt(2.0 * size) * z
    return x


def _norm(x: Float[Array, "n *s"]) -> Float[Array, " n"]:
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))


@dataclass(frozen=True, kw_only=True)
class Langevin(Kernel):
    """Annealed Langevin dynamics: M network calls a step, and no move between the knots but these."""

    corrector_steps: int = 1  # M
    snr: float = 0.16  # r of (2)

    def __post_init__(self) -> None:
        check_langevin(self.corrector_steps, self.snr, fewest=1)

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def calls_per_step(self) -> int:
        return self.corrector_steps

    def rows(self, path: Path, knots: Knots) -> Rows:
        return langevin_rows(knots)

    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        zs = [noise(j) for j in range(self.corrector_steps)]
        return {"x": langevin(denoise, carry["x"], row, zs, self.snr)}
