"""A fixed-step solver: rows tabulated on the host in float64, and one pure step that `lax.scan` runs over them.

A solver of one's own subclasses `Multistep` or `Singlestep` (a table of coefficients) or `Kernel` (any step), in any
file. It moves between noisy knots only: σ > 0 at both ends. The step from the last of them onto clean data is
x ← D(x, t), one network call, for every solver alike: log-SNR is infinite there, and no polynomial reaches it.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.grids import Knots
from paths.path import Path
from samplers.solver import Noise, NoiseOfStep, Samples, Solver

AHEAD = 2**20  # normal numbers drawn before the scan at most: 4 MB in float32
Rows = Mapping[str, np.ndarray]  # float64, one leading index a step
Row = Mapping[str, Array]  # one of them, on the device


@dataclass(frozen=True, kw_only=True)
class Kernel(Solver):
    """Base of the fixed-step solvers.

    `calls_per_step` is stated, and what a sampler reports follows from it; `samplers.check` counts the calls.
    """

    @property
    def calls_per_step(self) -> int:
        return 1

    def network_calls(self, steps: int) -> int:
        return (steps - 1) * self.calls_per_step + 1

    @abstractmethod
    def rows(self, path: Path, knots: Knots) -> Rows:
        """What each step needs: times, α and σ at both ends, coefficients. Arrays [knots.steps, …] in float64.

        Raises:
          ValueError: the solver cannot run on this path or these knots, with the reason.
        """

    def init(self, x: Float[Array, "n *s"], rows: Row) -> Any:
        """The carry before the first step, from noise x and all rows. A dict whose entry `x` is the state."""
        return {"x": x}

    @abstractmethod
    def step(self, denoise: Denoise, carry: Any, row: Row, noise: Noise) -> Any:
        """One step: the new carry, of the same structure. `noise()` is standard normal, shaped like x."""

    def landing(self, row: Row, t: Float[Array, ""]) -> Row | None:
        """A row whose step returns x̂₀ at time t, so that the scan holds the last step too. None: it cannot."""
        return None

    def solve(
        self,
        denoise: Denoise,
        path: Path,
        knots: Knots,
        x: Float[Array, "n *s"],
        noise: NoiseOfStep,
        trajectory: bool = False,
    ) -> Samples:
        lands = bool(knots.sigma[-1] == 0.0)
        moves = knots.noisy if lands else knots
        last = jnp.asarray(moves.t[-1], x.dtype)
        if moves.steps == 0:
            end = denoise(x, last)
            return Samples(end, jnp.stack([x, end]) if trajectory else None)
        table = {name: np.asarray(value, np.float64) for name, value in self.rows(path, moves).items()}
        check_rows(self, table)
        rows = {name: jnp.asarray(value, x.dtype) for name, value in table.items()}
        carry = self.init(x, rows)
        landing = self.landing({name: value[-1] for name, value in rows.items()}, last) if lands else None
        if landing is not None:
            rows = {name: jnp.concatenate([rows[name], landing[name][None]]) for name in rows}

        count = len(next(iter(rows.values())))
        # Drawing a few numbers within a scan is a hundred tiny operations: where all fit, the first noise of every step
        # is drawn before it. The numbers are the same; what is done with them may be rounded differently.
        early = self.stochastic and count * x.size <= AHEAD
        ahead = jax.vmap(lambda index: noise(index)())(jnp.arange(count)) if early else None

        def body(carry: Any, row_index_and_noise: tuple[Any, Any, Any]) -> tuple[Any, Any]:
            row, index, first = row_index_and_noise
            drawn = lambda j=0: noise(index)(j) if j or first is None else first  # noqa: E731
            carry = self.step(denoise, carry, row, drawn)
            return carry, carry["x"] if trajectory else None

        carry, states = jax.lax.scan(body, carry, (rows, jnp.arange(count), ahead))
        end, states = carry["x"], [x[None], states]
        if lands and landing is None:
            end = denoise(end, last)
            states.append(end[None])
        return Samples(end, jnp.concatenate(states) if trajectory else None)


def check_rows(kernel: Kernel, rows: Rows) -> None:
    """Rows must be finite and equally many.

    Raises:
      ValueError: they are not; says which and where.
    """
    name = type(kernel).__name__
    lengths = {key: len(value) for key, value in rows.items()}
    if not lengths or len(set(lengths.values())) != 1:
        raise ValueError(f"{name}.rows must give arrays of one length, a row a step; got lengths {lengths}")
    for key, value in rows.items():
        wrong = np.flatnonzero(~np.isfinite(value).reshape(len(value), -1).all(axis=1))
        if len(wrong):
            raise ValueError(f"{name}.rows gives {key} = {value[wrong[0]]} in row {wrong[0]} of {len(value)}")
