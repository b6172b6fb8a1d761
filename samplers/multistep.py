"""Linear multistep solvers as tables: most of the field's samplers are one row of numbers a step.

    (1)  x ← A·x + Σⱼ Bⱼ·x̂₀,ᵢ₋ⱼ + S·z,   z ~ N(0, I),  j = 0 … K−1

x̂₀,ᵢ₋ⱼ is the network's data estimate j steps ago. Lower orders at the first and last steps, σ = 0 and noise that is
switched off are entries of the table, so the scanned step has no branches.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path
from samplers.kernel import Kernel, Row, Rows
from samplers.sampler import normal_like


class Table(NamedTuple):
    """Coefficients of (1), float64."""

    A: Float[np.ndarray, "n"]
    B: Float[np.ndarray, "n k"]
    S: Float[np.ndarray, "n"]


@dataclass(frozen=True, kw_only=True)
class Multistep(Kernel):
    """Base of the table solvers. A new one defines `table(path, knots)`."""

    @abstractmethod
    def table(self, path: Path, knots: Knots) -> Table: ...

    def rows(self, path: Path, knots: Knots) -> Rows:
        table = self.table(path, knots)
        rows = {"t": knots.t[:-1], "A": table.A, "B": table.B}
        # A deterministic solver has no row for noise, and so never draws any.
        return rows | {"S": table.S} if np.any(table.S) else rows

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        # Estimates from before the start: no entry of B asks for them, so any finite value will do.
        return {"x": x, "history": (jnp.zeros_like(x),) * (rows["B"].shape[1] - 1)}

    def step(self, denoise: Denoise, carry: Any, row: Row, keys: Key[Array, " n"]) -> Any:
        estimates = (denoise(carry["x"], row["t"]), *carry["history"])
        x = row["A"] * carry["x"]
        for j, estimate in enumerate(estimates):
            x = x + row["B"][j] * estimate
        if "S" in row:
            x = x + row["S"] * normal_like(keys, x)
        return {"x": x, "history": estimates[:-1]}
