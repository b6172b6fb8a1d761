"""Linear multistep solvers as tables: most of the field's samplers are one row of numbers a step.

    (1)  x ← A·x + Σⱼ Bⱼ·yᵢ₋ⱼ + S·z,   z ~ N(0, I),  j = 0 … K−1
    (2)  yᵢ = Pᵢ·xᵢ + Qᵢ·D(xᵢ, tᵢ)

yᵢ₋ⱼ is what the network said j steps ago: x̂₀ itself (P = 0, Q = 1) unless a table asks for ε̂ or another combination.
Lower orders at the first steps and noise that is switched off are entries of the table, so the step has no branches.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path
from samplers.kernel import Kernel, Row, Rows
from samplers.solver import Noise


class Table(NamedTuple):
    """Coefficients of (1) and (2), float64."""

    A: Float[np.ndarray, "n"]
    B: Float[np.ndarray, "n k"]
    S: Float[np.ndarray, "n"]
    P: Float[np.ndarray, "n"] | None = None
    Q: Float[np.ndarray, "n"] | None = None
    t: Float[np.ndarray, "n"] | None = None  # times of the calls, where they are not the first n knots


@dataclass(frozen=True, kw_only=True)
class Multistep(Kernel):
    """Base of the multistep solvers. A new one defines `table(path, knots)`, with knots.steps rows."""

    @abstractmethod
    def table(self, path: Path, knots: Knots) -> Table: ...

    def rows(self, path: Path, knots: Knots) -> Rows:
        table = self.table(path, knots)
        rows = {"t": knots.t[:-1] if table.t is None else table.t, "A": table.A, "B": table.B}
        if table.P is not None and table.Q is not None:
            rows |= {"P": table.P, "Q": table.Q}
        # A deterministic solver has no row for noise, and so never draws any.
        return rows | {"S": table.S} if np.any(table.S) else rows

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        # What was said before the start: no entry of B asks for it, so any finite value will do.
        return {"x": x, "said": (jnp.zeros_like(x),) * (rows["B"].shape[1] - 1)}

    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        x = carry["x"]
        y = denoise(x, row["t"])
        if "P" in row:
            y = row["P"] * x + row["Q"] * y
        said = (y, *carry["said"])
        x = row["A"] * x
        for j, value in enumerate(said):
            x = x + row["B"][j] * value
        if "S" in row:
            x = x + row["S"] * noise()
        return {"x": x, "said": said[:-1]}

    def landing(self, row: Row, t: Float[Array, ""]) -> Row:
        first = jnp.zeros_like(row["B"]).at[0].set(1.0)
        clean = {name: jnp.zeros_like(value) for name, value in row.items()}
        return clean | {"t": t, "B": first} | ({"Q": jnp.ones_like(t)} if "Q" in row else {})
