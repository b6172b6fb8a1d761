"""Predictor-corrector sampling (Song et al. 2011.13456, alg. 1-5), on any path.

A move of the predictor from t to t', then M Langevin steps at t' (samplers/langevin.py). The predictor is any table of
one call a step: `reverse_diffusion`, `ddpm` (the paper's ancestral), `reverse_sde` (Euler). The order is the paper's:
its public code corrects first, at t. r is a setting to be tuned: 0.16 is the paper's for VE on CIFAR-10.

At r = 0.16 the check's 64-D Gaussian has a deviation off by 16 % in its narrowest direction, and the 2-D mixture fails
(`python -m samplers.check pc --path vp`, 400 steps, 2026-11-23): the bias of samplers/langevin.py.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path
from samplers.kernel import Kernel, Row, Rows
from samplers.langevin import check_langevin, langevin, langevin_rows
from samplers.multistep import Multistep
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.solver import Noise

FIRST = 64  # numbers of the corrector's noises; the predictor has those below


@dataclass(frozen=True, kw_only=True)
class PC(Kernel):
    """Predictor-corrector: 1 + M network calls a step with a predictor of one call."""

    predictor: Multistep = field(default_factory=ReverseDiffusion)
    corrector_steps: int = 1  # M; 0 leaves the predictor alone
    snr: float = 0.16  # r of samplers/langevin.py

    def __post_init__(self) -> None:
        check_langevin(self.corrector_steps, self.snr, fewest=0)

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
        return {**{f"predictor.{name}": value for name, value in rows.items()}, **langevin_rows(knots)}

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        return self.predictor.init(x, _predictors(rows))

    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        carry = self.predictor.step(denoise, carry, _predictors(row), noise)
        x = langevin(denoise, carry["x"], row, [noise(FIRST + j) for j in range(self.corrector_steps)], self.snr)
        return {**carry, "x": x}


def _predictors(row: Row) -> Row:
    prefix = "predictor."
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
