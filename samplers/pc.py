"""Predictor-corrector sampling (Song et al. 2011.13456, alg. 1-5), on any path.

A move of the predictor from t to t', then M Langevin steps at t', with s the score and r the signal-to-noise ratio:

    (1)  x ← x + ε·s(x, t') + √(2ε)·z                                                            alg. 4-5
    (2)  ε = 2a²·(r‖z‖/‖s‖)²,  a = α/α' of the move (1 on VE, √(1−β) on VP)                      alg. 4-5

The predictor is any table of one call a step. The order is the paper's: its public code corrects first, at t, and takes
‖z‖ and ‖s‖ as means over the batch, so that a sample there depends on its neighbours. Here both are the sample's own.

Langevin steps that are not adjusted have a bias that no grid removes, and in a few dimensions ‖z‖/‖s‖ has heavy tails:
at r = 0.16 the check's 64-D Gaussian has a deviation off by 16 % in its narrowest direction, and the 2-D mixture fails
(`python -m samplers.check pc --path vp`, 400 steps, 2026-11-23). r is a setting to be tuned.
"""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.denoiser import Denoise, expand
from paths.grids import Knots
from paths.path import Path
from samplers.kernel import Kernel, Row, Rows
from samplers.multistep import Multistep
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.solver import Noise

FIRST = 64  # numbers of the corrector's noises; the predictor has those below


@dataclass(frozen=True, kw_only=True)
class PC(Kernel):
    """Predictor-corrector: 1 + M network calls a step with a predictor of one call."""

    predictor: Multistep = field(
        default_factory=ReverseDiffusion
    )  # or any other table: ddpm (ancestral), reverse_sde (Euler)
    corrector_steps: int = 1  # M; 0 leaves the predictor alone
    snr: float = 0.16  # r of (2); 0.16 is the paper's for VE on CIFAR-10

    def __post_init__(self) -> None:
        if self.corrector_steps < 0 or not self.snr > 0:
            raise ValueError(f"corrector_steps={self.corrector_steps} must be at least 0 and snr={self.snr} above 0")

    @property
    def stochastic(self) -> bool:
        return self.corrector_steps > 0 or self.predictor.stochastic

    @property
    def calls_per_step(self) -> int:
        return self.predictor.calls_per_step + self.corrector_steps

    def network_calls(self, steps: int) -> int:
        return self.predictor.network_calls(steps) + (steps - 1) * self.corrector_steps

    def rows(self, path: Path, knots: Knots) -> Rows:
        rows = self.predictor.rows(path, knots)
        if len(next(iter(rows.values()))) != knots.steps:
            raise ValueError(f"{type(self.predictor).__name__} takes more rows than steps and cannot be a predictor")
        own = {"t": knots.t[1:], "alpha": knots.alpha[1:], "sigma": knots.sigma[1:]}
        own["scale"] = np.where(knots.alpha[:-1] > 0, knots.alpha[:-1] / knots.alpha[1:], 1.0)
        return {f"predictor.{name}": value for name, value in rows.items()} | own

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        return self.predictor.init(x, _predictors(rows))

    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        carry = self.predictor.step(denoise, carry, _predictors(row), noise)
        x, t, alpha, sigma = carry["x"], row["t"], row["alpha"], row["sigma"]
        for j in range(self.corrector_steps):
            score = (alpha * denoise(x, t) - x) / sigma**2
            z = noise(FIRST + j)
            ratio = _norm(z) / jnp.maximum(_norm(score), jnp.finfo(x.dtype).tiny)
            size = expand(2.0 * (row["scale"] * self.snr * ratio) ** 2, x)
            x = x + size * score + jnp.sqrt(2.0 * size) * z
        return {**carry, "x": x}


def _predictors(row: Row) -> Row:
    prefix = "predictor."
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def _norm(x: Float[Array, "n *s"]) -> Float[Array, " n"]:
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))
