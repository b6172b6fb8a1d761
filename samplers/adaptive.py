"""Adaptive Dormand-Prince and Tsitouras on the probability-flow ODE (2011.13456, eq. 13 and app. D.4).

    (1)  dx/dt = u = (σ̇/σ)x + (α̇ − ασ̇/σ)·x̂₀  from the grid's first time to `t_end`;  then x ← D(x, t_end)

solved in the time w of paths/clock.py, in which it is smooth. Each sample is a solve of its own, with its own steps and
its own count of network calls, so that it does not depend on its batch; the batch goes on until the last of them has
arrived. The grid only says where the solve starts and at which times a trajectory is seen.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
from jaxtyping import Array, Float

from models.denoiser import Denoise
from paths.clock import Clock
from paths.grids import Knots
from paths.path import Path, expand
from samplers.euler import velocity_coefficients
from samplers.integrators import Adaptive
from samplers.solver import NoiseOfStep, Samples, Solver


@dataclass(frozen=True, kw_only=True)
class AdaptiveSolver(Solver):
    """Base of the two: tolerances and the end."""

    NAME = ""

    METHOD: ClassVar[Literal["dopri5", "tsit5"]]

    rtol: float = 1e-5  # relative tolerance of a step
    atol: float = 1e-5  # absolute tolerance of a step
    t_end: float | None = None  # where the ODE ends and x̂₀ is taken; the path's t_min by default
    max_steps: int = 10_000  # steps tried; a solve that needs more gives NaN

    def network_calls(self, steps: int) -> None:
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
        end = (path.t_min if self.t_end is None else self.t_end) if lands else float(knots.t[-1])
        start = float(knots.t[0])
        if not 0 <= end < start or path.sigma(end) <= 0:
            raise ValueError(f"{type(self).__name__}: t_end={end:g} must be below {start:g}, and σ(t_end) above 0")

        clock = Clock(path, end, start)

        def velocities(w: Float[Array, " n"], x: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
            t, rate = clock.time(w)
            a, b = velocity_coefficients(path, t)
            return expand(rate * a, x) * x + expand(rate * b, x) * denoise(x, t)

        # A solve is one sample's, but the denoiser wants the whole batch, whose condition has a row for each sample. So
        # the field of one sample is never run as such: what it means under vmap is the batch's. Whatever `denoise`
        # closes over must be handed in by name, since a batching rule may not close over traced values.
        closed = jax.make_jaxpr(velocities)(jnp.zeros(x.shape[:1], x.dtype), x)

        @jax.custom_batching.custom_vmap
        def velocity(consts: Any, w: Float[Array, ""], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
            return w * x  # the shape alone matters

        @velocity.def_vmap
        def together(size: int, batched: Any, consts: Any, w: Any, x: Any) -> tuple[Any, bool]:
            return eval_jaxpr(closed.jaxpr, consts, jnp.broadcast_to(w, (size,)), x)[0], True

        integrator = Adaptive(method=self.METHOD, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)
        seen = clock.at(np.clip(knots.t[1:-1], end, start)) if trajectory else None
        # Steps of an e-fold of σ/α at most: a longer one could pass over where data is decided.
        one = partial(integrator, partial(velocity, closed.consts), longest=1.0, save_at=seen)
        solution = jax.vmap(lambda x: one(x, clock.last, clock.first))(x)
        states = [x[None], jnp.moveaxis(solution.saved, 1, 0), solution.y[None]] if trajectory else []
        final, nfe = solution.y, solution.nfe
        if lands:
            final, nfe = denoise(final, jnp.asarray(end, x.dtype)), nfe + 1
            states.append(final[None])
        return Samples(final, jnp.concatenate(states) if trajectory else None, nfe)


@dataclass(frozen=True, kw_only=True)
class Dopri5(AdaptiveSolver):
    """Dormand-Prince 5(4): six network calls for each step tried."""

    METHOD = "dopri5"


@dataclass(frozen=True, kw_only=True)
class Tsit5(AdaptiveSolver):
    """Tsitouras 5(4): six network calls for each step tried."""

    METHOD = "tsit5"
