"""What a solver is: rows tabulated on the host in float64, and one pure step that is scanned over them.

A solver of one's own subclasses `Kernel` (any step) or `Multistep` (a table of coefficients), in any file.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path

Rows = Mapping[str, np.ndarray]  # float64, leading axis N
Row = Mapping[str, Array]  # one of them, float32, on the device


@dataclass(frozen=True, kw_only=True)
class Kernel(ABC):
    """Base of all solvers.

    `calls_per_step` is stated, and the number of calls a sampler reports is steps × that; tests count them.
    """

    @property
    def calls_per_step(self) -> int:
        return 1

    @abstractmethod
    def rows(self, path: Path, knots: Knots) -> Rows:
        """What each step needs: times, α and σ at both ends, coefficients. Arrays [N, …] in float64."""

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        """The carry before the first step, from noise x and all rows. A pytree whose entry `x` is the state."""
        return {"x": x}

    @abstractmethod
    def step(self, denoise: Denoise, carry: Any, row: Row, keys: Key[Array, " n"]) -> Any:
        """One step: the new carry. `denoise(x, t)` gives x̂₀ for a scalar t; `keys` are this step's, one a sample."""
