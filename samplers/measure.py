"""What is measured of a solver, on densities whose denoiser is exact (samplers/targets.py).

    strong order   the ODE keeps ranks on the line, so the end of every trajectory is known: mean |x_N − x(t_N)|
    weak order     for Gaussian data a solver that is affine in x and its noises sends a Gaussian to a Gaussian, whose
                   mean and deviation follow from its responses to unit noises; both errors are then free of sampling
    order          the slope of log₂ error when the steps are doubled, until two slopes agree to 0.1; where none do,
                   where they agree best (a first step of low order shows in the end, at errors of 1e-8)

Between knots evenly spaced in log-SNR, with noise at both ends, in float64: no step lands on data, which is x̂₀ for
every solver alike. Bias, counts and batches are measured with that last step, as samples are drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from paths.grids import Knots, UniformLogSNR, between
from paths.path import Path
from samplers.diffusion import solve
from samplers.sampler import sample_keys
from samplers.solver import Solver
from samplers.targets import LINE, Mixture

RANKS = (np.arange(16) + 0.5) / 16
GAUSSIAN = Mixture(np.ones(1), np.asarray([[0.5]]), np.asarray([[0.4]]))
FIRST_LOG_SNR, LAST_LOG_SNR = -8.0, 6.0  # from all but noise to all but data
LIMIT = 1e-10  # errors below it are rounding


class NotAffineError(ValueError):
    """A stochastic solver whose error cannot be told from chance."""


class Order(NamedTuple):
    """Errors at numbers of steps, and the slope they settle at."""

    steps: list[int]
    errors: list[float]

    @property
    def slopes(self) -> list[float]:
        return [float(np.log2(a / b)) for a, b in zip(self.errors, self.errors[1:], strict=False)]

    @property
    def order(self) -> float:
        changes = np.abs(np.diff(self.slopes))
        return self.slopes[1 + int(np.argmin(changes))] if len(changes) else self.slopes[-1]


def stretch(path: Path, steps: int) -> Knots:
    """The interval on which orders are measured."""
    first = float(path.time_of_log_snr(max(float(path.log_snr(path.t_max)), FIRST_LOG_SNR)))
    last = float(path.time_of_log_snr(min(float(path.log_snr(path.t_min)), LAST_LOG_SNR)))
    return between(path, first, last, steps)


def strong_error(solver: Solver, path: Path, steps: int) -> float:
    """Mean distance from the exact end of 16 trajectories of the 1-D mixture's ODE."""
    knots = stretch(path, steps)
    with jax.enable_x64(True):
        x = jnp.asarray(LINE.quantile(path, RANKS, float(knots.t[0])))[:, None]
        nothing = lambda index: lambda j=0: jnp.zeros_like(x)  # noqa: E731
        end = np.asarray(jax.jit(lambda x: solver.solve(LINE.denoise(path), path, knots, x, nothing).x)(x))
    return float(np.abs(end[:, 0] - LINE.quantile(path, RANKS, float(knots.t[-1]))).mean())


def weak_error(solver: Solver, path: Path, steps: int) -> float:
    """|error of the mean| + |error of the standard deviation| at the end, for Gaussian data.

    Raises:
      NotAffineError: the solver is not affine in x and its noises.
    """
    knots = stretch(path, steps)
    mean, std = affine_moments(solver, GAUSSIAN, path, knots)
    alpha, sigma = knots.alpha[-1], knots.sigma[-1]
    exact = np.sqrt(alpha**2 * GAUSSIAN.stds[0] ** 2 + sigma**2)
    return float(np.abs(mean - alpha * GAUSSIAN.means[0]).max() + np.abs(std - exact).max())


def affine_moments(
    solver: Solver, target: Mixture, path: Path, knots: Knots
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Exact mean and standard deviation of what a solver makes of a Gaussian target, coordinate by coordinate.

    Raises:
      NotAffineError: the solver is not affine in x and its noises.
    """
    assert len(target.weights) == 1, "only a Gaussian stays one under an affine solver"
    numbers = _noise_numbers(solver, target, path, knots)
    rows = 2 + (knots.steps + 1) * len(numbers)  # no noise; the start; a noise each (PLMS has a row more than steps)

    def responses(scale: Float[Array, ""]) -> Float[Array, "rows d"]:
        def noise(index: Any) -> Callable[..., Any]:
            def of(j: int = 0) -> Any:
                unit = jnp.arange(rows) == 2 + index * len(numbers) + numbers.index(j)
                return jnp.broadcast_to(scale * unit[:, None], (rows, target.dim)).astype(jnp.float64)

            return of

        x = jnp.zeros((rows, target.dim)).at[1].set(scale)
        return solver.solve(target.denoise(path), path, knots, x, noise).x

    with jax.enable_x64(True):
        run = jax.jit(responses)
        out, doubled = np.asarray(run(jnp.asarray(1.0))), np.asarray(run(jnp.asarray(2.0)))
    base, change = out[0], out[1:] - out[0]
    if not np.allclose(doubled[1:] - doubled[0], 2.0 * change, rtol=1e-6, atol=1e-9):
        raise NotAffineError("the solver is not affine in x and its noises")
    alpha, sigma = knots.alpha[0], knots.sigma[0]
    start_std = np.sqrt(alpha**2 * target.stds[0] ** 2 + sigma**2)
    mean = base + change[0] * alpha * target.means[0]
    return mean, np.sqrt((change[0] * start_std) ** 2 + (change[1:] ** 2).sum(0))


def _noise_numbers(solver: Solver, target: Mixture, path: Path, knots: Knots) -> list[int]:
    """The j of every `noise(j)` that a step asks for."""
    seen: set[int] = set()

    def noise(index: Any) -> Callable[..., Any]:
        def of(j: int = 0) -> Any:
            seen.add(j)
            return jnp.zeros((1, target.dim))

        return of

    jax.eval_shape(lambda x: solver.solve(target.denoise(path), path, knots, x, noise).x, jnp.zeros((1, target.dim)))
    return sorted(seen)


def order(solver: Solver, path: Path, first: int = 40, last: int = 2560) -> Order:
    """Doubles the steps until two slopes agree to 0.1, the error is rounding, or `last` is reached.

    Raises:
      NotAffineError: the solver is stochastic and not affine.
    """
    error = weak_error if solver.stochastic else strong_error
    found = Order([first], [error(solver, path, first)])
    while found.steps[-1] < last:
        steps = 2 * found.steps[-1]
        e = error(solver, path, steps)
        if e < LIMIT and len(found.errors) > 1:
            break
        found.steps.append(steps)
        found.errors.append(e)
        if len(found.errors) > 2 and abs(found.slopes[-1] - found.slopes[-2]) < 0.1:
            break
    return found


def landing_moments(solver: Solver, target: Mixture, path: Path, steps: int) -> tuple[float, float]:
    """`moment_errors` of a Gaussian drawn as samples are, from a log-SNR grid's first knot onto data; no sampling."""
    return moment_errors(target, *affine_moments(solver, target, path, UniformLogSNR().knots(path, steps)))


def moment_errors(target: Mixture, mean: Float[np.ndarray, " d"], std: Float[np.ndarray, " d"]) -> tuple[float, float]:
    """Largest error of a coordinate's mean, in standard deviations, and of its deviation, relative."""
    exact = np.sqrt(target.variance)
    return float(np.abs((mean - target.mean) / exact).max()), float(np.abs(std / exact - 1.0).max())


def draw(solver: Solver, target: Mixture, path: Path, steps: int, n: int, seed: int = 0) -> Float[np.ndarray, "n d"]:
    """n samples on a log-SNR grid, in float32."""
    knots, D = UniformLogSNR().knots(path, steps), target.denoise(path)
    keys = sample_keys(jax.random.key(seed), jnp.arange(n))
    return np.asarray(jax.jit(lambda keys: solve(solver, D, path, knots, keys, (target.dim,)).x)(keys))


def sliced_wasserstein(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], directions: int = 64) -> float:
    """Mean over directions of the 1-Wasserstein distance of the projections, two sets of one size."""
    d = x.shape[1]
    unit = np.random.default_rng(0).normal(size=(d, directions))
    unit /= np.linalg.norm(unit, axis=0)
    return float(np.abs(np.sort(x @ unit, axis=0) - np.sort(y @ unit, axis=0)).mean())


def counted_calls(solver: Solver, path: Path, steps: int) -> tuple[int, int]:
    """(network calls counted while a solve runs, calls that it states)."""
    calls: list[int] = []
    D = LINE.denoise(path)

    def counting(x: Any, t: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return D(x, t)

    knots = UniformLogSNR().knots(path, steps)
    keys = sample_keys(jax.random.key(0), jnp.arange(1))
    samples = jax.jit(lambda keys: solve(solver, counting, path, knots, keys, (1,)))(keys)
    jax.block_until_ready(samples.x)
    jax.effects_barrier()
    stated = solver.network_calls(steps)
    if stated is None and samples.nfe is not None:  # decided on the way
        stated = int(samples.nfe[0])
    return len(calls), stated or 0


def split_difference(solver: Solver, path: Path, steps: int = 20) -> float:
    """Largest difference between samples drawn together and drawn in two parts, in float64."""
    with jax.enable_x64(True):
        knots, D = UniformLogSNR().knots(path, steps), LINE.denoise(path)
        keys = sample_keys(jax.random.key(0), jnp.arange(12))
        drawn = jax.jit(lambda keys: solve(solver, D, path, knots, keys, (1,)).x)
        parts = jnp.concatenate([drawn(keys[:5]), drawn(keys[5:])])
        return float(jnp.abs(drawn(keys) - parts).max())
