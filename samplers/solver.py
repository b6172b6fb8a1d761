"""The contract of a solver: from noise at the first knot to data at the last, on any path.

`Kernel` (samplers/kernel.py) is the fixed-step solver, `AdaptiveSolver` (samplers/adaptive.py) chooses its own steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path

Noise = Callable[..., Float[Array, "n *s"]]  # noise(j=0): the j-th standard normal of a step, shaped like x
NoiseOfStep = Callable[[Any], Noise]  # index of the step → its noise


class Samples(NamedTuple):
    """What solvers and samplers return."""

    x: Float[Array, "n *s"]
    trajectory: Float[Array, "states n *s"] | None = None  # every state from noise to data, only when asked for
    nfe: Int[Array, " n"] | None = None  # network calls of each sample, where the solver decides them as it goes


def check_order(order: int, highest: int) -> None:
    """Raises a ValueError where a solver's order is not one it has."""
    if not 1 <= order <= highest:
        raise ValueError(f"order={order} is not one of 1 to {highest}")


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Base of all solvers."""

    @property
    def stated_order(self) -> int | None:
        """Order of convergence at a fixed end (weak order if stochastic). None: nothing is claimed."""
        return None

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

    @abstractmethod
    def network_calls(self, steps: int) -> int | None:
        """Network calls of a solve in so many steps; None if it depends on the sample."""

    @abstractmethod
    def solve(
        self,
        denoise: Denoise,
        path: Path,
        knots: Knots,
        x: Float[Array, "n *s"],
        noise: NoiseOfStep,
        trajectory: bool = False,
    ) -> Samples:
        """From x at the first knot to the last. Pure, to be jitted by the caller.

        Args:
          denoise: `(x [n, *s], t scalar) → x̂₀`.
          knots: where to stop. If the last is clean data (σ = 0), the last step returns x̂₀ of the knot before it.
        """
