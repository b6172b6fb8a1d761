"""Ordinary differential equations dy/dt = f(t, y), y any pytree of arrays: integrators as values to hand around.

    (1)  euler   y' = y + h·k₁                                  kⱼ = f at the stage's time and state
    (2)  heun    y' = y + h/2·(k₁ + k₂)                         the explicit trapezoidal rule
    (3)  rk4     y' = y + h/6·(k₁ + 2k₂ + 2k₃ + k₄)
    (4)  dopri5, tsit5: embedded pairs of order 5(4); the error per step is kept within atol + rtol·|y|    (diffrax)
    (5)  first step of (4): Hairer, Nørsett & Wanner, "Solving Ordinary Differential Equations I", II.4, p. 169

Time may run either way. Nothing here knows of noise or data: t is whatever f says it is. `nfe` is the number of times f
was evaluated, exactly. A batch is `jax.vmap` of a solve: each member then keeps its own steps, and its own nfe.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.ode import Field, Integrator, Solution, Time
from models.remat import checkpointed_scan


def _dtype(y: Any) -> Any:
    dtype = jnp.result_type(*jax.tree.leaves(y))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"an integrator moves floating-point states, got {dtype}")
    return dtype


def _plus(y: Any, *terms: tuple[Any, Any]) -> Any:
    """y + Σ aⱼ·kⱼ over pytrees."""
    for scale, k in terms:
        y = jax.tree.map(lambda a, b: a + (scale * b).astype(a.dtype), y, k)  # noqa: B023, called at once
    return y


STAGES = {"euler": 1, "heun": 2, "rk4": 4}


@dataclass(frozen=True, kw_only=True)
class FixedStep(Integrator):
    """So many equal steps: order 1 (euler), 2 (heun) or 4 (rk4). Forward- and reverse-differentiable.

    Where `remat` says nothing, the backward pass keeps one state a step and evaluates f there again (1604.06174).
    """

    method: Literal["euler", "heun", "rk4"] = "rk4"  # costs 1, 2 or 4 evaluations a step
    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.method not in STAGES:
            raise ValueError(f"{self}: steps must be at least 1 and method one of {', '.join(STAGES)}")

    @property
    def equal_steps(self) -> bool:
        return True

    def __call__(
        self,
        f: Field,
        y0: Any,
        t0: Time,
        t1: Time,
        longest: float | None = None,
        remat: str | None = None,
    ) -> Solution:
        t, h = self._steps(t0, t1, _dtype(y0))

        def body(y: Any, row: tuple[Any, Any]) -> tuple[Any, None]:
            return self._step(f, row[0], row[1], y), None

        y, _ = checkpointed_scan(body, y0, (t, h), remat or "full")
        return Solution(y, jnp.asarray(self.steps * STAGES[self.method], jnp.int32))

    def _steps(self, t0: Time, t1: Time, dtype: Any) -> tuple[Any, Any]:
        """Where each step begins [N], and its length [N]; in float64 while t0 and t1 are host numbers."""
        length = t1 - t0  # times a fraction, not differences of times: these would cancel in float32
        begin = t0 + length * np.linspace(0.0, 1.0, self.steps, endpoint=False)
        return jnp.asarray(begin, dtype), jnp.full(self.steps, length / self.steps, dtype)

    def _step(self, f: Field, t: Float[Array, ""], h: Float[Array, ""], y: Any) -> Any:
        k1 = f(t, y)
        if self.method == "euler":
            return _plus(y, (h, k1))
        if self.method == "heun":
            k2 = f(t + h, _plus(y, (h, k1)))
            return _plus(y, (h / 2, k1), (h / 2, k2))
        k2 = f(t + h / 2, _plus(y, (h / 2, k1)))
        k3 = f(t + h / 2, _plus(y, (h / 2, k2)))
        k4 = f(t + h, _plus(y, (h, k3)))
        return _plus(y, (h / 6, k1), (h / 3, k2), (h / 3, k3), (h / 6, k4))


@dataclass(frozen=True, kw_only=True)
class Adaptive(Integrator):
    """Steps chosen so that the error of each stays within tolerance. Reverse-differentiable only.

    Of its gradient diffrax takes care: states are kept at fewer times than there are steps, and `remat` says nothing.

    The error is measured leaf by leaf (root mean square over a leaf) and the largest counts, so that one log-density
    beside thousands of pixels is as exact as they are. nfe = 2 + 6·(steps tried): both pairs evaluate f at the start,
    once more to choose the first step, and then six times a step, rejected ones included.

    A solve that has not arrived after `max_steps` gives NaN for y and `saved`, never a state from the middle. `save_at`
    are times between t0 and t1, in the order in which they are passed, where y is wanted too.
    """

    method: Literal["dopri5", "tsit5"] = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000  # tried steps, rejected ones included

    def __post_init__(self) -> None:
        if self.method not in ("dopri5", "tsit5") or not (self.rtol >= 0 and self.atol > 0 and self.max_steps >= 1):
            raise ValueError(f"{self}: method must be dopri5 or tsit5, rtol >= 0, atol > 0 and max_steps at least 1")

    def __call__(
        self,
        f: Field,
        y0: Any,
        t0: Time,
        t1: Time,
        longest: float | None = None,
        remat: str | None = None,
        save_at: Float[np.ndarray, " n"] | None = None,
    ) -> Solution:
        import diffrax  # here, because it takes a second or two to import

        dtype = _dtype(y0)
        start, end = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
        f0 = f(start, y0)
        wanted = diffrax.SaveAt(t1=True, ts=None if save_at is None else jnp.asarray(save_at, dtype))
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: f(t, y)),  # pyright: ignore[reportArgumentType], its (t, y, args) is ours
            _first_evaluated(self.method)(f0=f0),
            t0=start,
            t1=end,
            dt0=self._first_step(f, f0, y0, start, end),
            y0=y0,
            saveat=wanted,
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol, norm=_norm, dtmax=longest),
            max_steps=self.max_steps,
            throw=False,
        )
        arrived = found.result == diffrax.RESULTS.successful
        states = jax.tree.map(lambda leaf: jnp.where(arrived, leaf, jnp.nan), found.ys)
        nfe = jnp.asarray(2 + 6 * found.stats["num_steps"], jnp.int32)
        saved = None if save_at is None else jax.tree.map(lambda leaf: leaf[:-1], states)
        return Solution(jax.tree.map(lambda leaf: leaf[-1], states), nfe, saved)

    def _first_step(self, f: Field, f0: Any, y0: Any, t0: Float[Array, ""], t1: Float[Array, ""]) -> Float[Array, ""]:
        """Algorithm (5), one evaluation of f; no gradient passes. (diffrax 0.7's own takes 0.01 for every ODE.)"""
        f0, y0 = jax.lax.stop_gradient((f0, y0))
        scaled = lambda k: _norm(jax.tree.map(lambda a, b: a / (self.atol + self.rtol * jnp.abs(b)), k, y0))  # noqa: E731
        sign = jnp.where(t1 >= t0, 1.0, -1.0).astype(t0.dtype)
        size, slope = scaled(y0), scaled(f0)
        flat = (size < 1e-5) | (slope < 1e-5)
        h0 = jnp.where(flat, 1e-6, 0.01 * size / jnp.where(flat, 1.0, slope))
        h0 = jnp.clip(h0, 1e-6 * jnp.abs(t1 - t0), jnp.abs(t1 - t0))  # a guess must not leave the interval
        f1 = jax.lax.stop_gradient(f(t0 + sign * h0, _plus(y0, (sign * h0, f0))))
        bend = scaled(jax.tree.map(jnp.subtract, f1, f0)) / jnp.where(h0 > 0, h0, 1.0)
        steepest = jnp.maximum(slope, bend)
        h1 = jnp.where(steepest <= 1e-15, jnp.maximum(1e-6, 1e-3 * h0), (0.01 / jnp.maximum(steepest, 1e-15)) ** 0.2)
        smallest = 16 * jnp.finfo(t0.dtype).eps * jnp.maximum(jnp.abs(t0), jnp.abs(t1))  # below it t0 + h is t0
        return sign * jnp.maximum(jnp.minimum(100 * h0, h1), smallest).astype(t0.dtype)


def _norm(y: Any) -> Float[Array, ""]:
    """The largest root mean square of a leaf."""
    roots = [jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(y)]
    return functools.reduce(jnp.maximum, roots)


@functools.cache
def _first_evaluated(method: str) -> Any:
    """diffrax's solver, given f(t0, y0).

    Its own evaluates the first stage anew after every rejected first step, of any member of a batch: one could not say
    how often f was evaluated, and a sample's last bits would depend on its neighbours.
    """
    import diffrax

    base: Any = {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}[method]

    class FirstEvaluated(base):
        f0: Any = None

        def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
            return jnp.array(False), self.f0  # (nothing to evaluate first, the first stage)

    return FirstEvaluated
