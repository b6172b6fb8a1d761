"""Ordinary differential equations dy/dt = f(t, y), y any pytree of arrays: what a model asks of whoever solves them.

The integrators themselves are in samplers/integrators.py. A model that is an ODE is handed one as a value.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

Time = Float[Array, ""] | float | int
Field = Callable[[Float[Array, ""], Any], Any]  # (t, y) → dy/dt, of y's structure, shapes and dtypes


class Solution(NamedTuple):
    """What an integrator returns."""

    y: Any  # at t1
    nfe: Int[Array, ""]  # evaluations of f
    saved: Any = None  # at the times that an adaptive solve was asked for, on a new leading axis


@dataclass(frozen=True, kw_only=True)
class Integrator(ABC):
    """Base of all integrators."""

    @property
    def equal_steps(self) -> bool:
        """Whether its steps are the same whatever it solves, so that a batch may be solved as one state."""
        return False

    @abstractmethod
    def __call__(
        self,
        f: Field,
        y0: Any,
        t0: Time,
        t1: Time,
        longest: float | None = None,
        remat: str | None = None,
    ) -> Solution:
        """Solves dy/dt = f(t, y) from y0 at t0 to t1. Pure; differentiable in y0 and whatever f closes over.

        Args:
          f: the field; t is a scalar of y's dtype.
          y0: a pytree of floating-point arrays.
          t0, t1: in either order.
          longest: the longest step of an integrator that chooses its own: what the caller knows of f's scale. The error
            of a step is estimated from f at six times within it, and what happens between them can be missed.
          remat: gradient checkpointing of equal steps, models/remat.py; None is `full`. An integrator that chooses its
            own steps has its own.

        Raises:
          TypeError: y0 is not floating-point.
        """
