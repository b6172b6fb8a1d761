"""Solvers that call the network several times within a step, as tables too: Runge-Kutta schemes of any kind.

    (1)  Dⱼ = D(yⱼ, tⱼ),  yⱼ a linear combination of x, D₁ … Dⱼ₋₁ and noises z,   j = 1 … K
    (2)  x ← a linear combination of x, D₁ … D_K and z

The combinations are built on the host in float64 from the paper's own formulas: `terms` gives x, the Dⱼ and the noises
as unit vectors, and sums and multiples of them, with one coefficient a row ([n, 1] arrays, `ends`), are the table.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path
from samplers.kernel import Kernel, Row, Rows
from samplers.solver import Noise

Column = Float[np.ndarray, "n 1"]  # a coefficient, one a step
Combination = Float[np.ndarray, "n c"]  # of x, D₁ … D_K, z₁ …


class End(NamedTuple):
    """One end of each step."""

    t: Column
    alpha: Column
    sigma: Column


class Calls(NamedTuple):
    """The table of (1) and (2)."""

    t: Sequence[Column]  # tⱼ
    y: Sequence[Combination]  # what the network is given
    x: Combination  # where the step ends


def ends(knots: Knots) -> tuple[End, End]:
    """(t, α, σ) at the noisy and at the clean end of each step, as columns."""
    columns = [(k[:-1, None], k[1:, None]) for k in (knots.t, knots.alpha, knots.sigma)]
    return End(*(a for a, _ in columns)), End(*(b for _, b in columns))


def at(path: Path, t: Column) -> End:
    """(t, α, σ) at other times."""
    return End(t, np.asarray(path.alpha(t)), np.asarray(path.sigma(t)))


def terms(steps: int, calls: int, noises: int = 0) -> tuple[Combination, list[Combination], list[Combination]]:
    """x, [D₁ … D_K] and [z₁ …] as unit vectors, one a row."""
    units = np.eye(1 + calls + noises)
    x, *rest = (np.broadcast_to(unit, (steps, len(unit))) for unit in units)
    return x, rest[:calls], rest[calls:]


def noise_estimate(x: Combination, x0: Combination, where: End) -> Combination:
    """ε̂ = (x − α·x̂₀)/σ."""
    return (x - where.alpha * x0) / where.sigma


@dataclass(frozen=True, kw_only=True)
class Singlestep(Kernel):
    """Base of the singlestep solvers. A new one defines `calls(path, knots)` and `calls_per_step`."""

    @abstractmethod
    def calls(self, path: Path, knots: Knots) -> Calls: ...

    def rows(self, path: Path, knots: Knots) -> Rows:
        calls = self.calls(path, knots)
        if len(calls.t) != len(calls.y) or len(calls.y) != self.calls_per_step:
            raise ValueError(
                f"{type(self).__name__} states {self.calls_per_step} network calls a step, but its table has "
                f"{len(calls.t)} times and {len(calls.y)} inputs"
            )
        return {"t": np.concatenate(calls.t, axis=1), "y": np.stack(calls.y, axis=1), "x": calls.x}

    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        calls = self.calls_per_step
        zs = [noise(j) for j in range(row["x"].shape[0] - 1 - calls)]
        said: list[Any] = []
        for j in range(calls):
            said.append(denoise(_combine(row["y"][j], carry["x"], said, zs, calls), row["t"][j]))
        return {"x": _combine(row["x"], carry["x"], said, zs, calls)}


def _combine(coefficients: Float[Array, " c"], x: Any, said: list[Any], zs: list[Any], calls: int) -> Any:
    total = coefficients[0] * x
    for j, value in enumerate(said):
        total = total + coefficients[1 + j] * value
    for j, z in enumerate(zs):
        total = total + coefficients[1 + calls + j] * z
    return total
