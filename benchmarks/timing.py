"""What the benchmarks of samplers share: timing in turn, a solver to be timed, a small network."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from models.denoiser import Denoiser
from models.model import Net
from paths.grids import Knots
from samplers.sampler import noise_of_steps, sample_keys
from samplers.solver import Solver

Timed = Callable[[], Any]  # runs, and waits for the end


def interleaved(functions: list[Timed], rounds: int, before: Timed = lambda: None) -> np.ndarray:
    """Seconds [rounds, functions], one after the other in every round; a first round is not counted.

    `before` runs ahead of each and is not timed.
    """
    found = np.zeros((rounds, len(functions)))
    gc.disable()
    for row in (np.zeros(len(functions)), *found):
        for i, function in enumerate(functions):
            before()
            began = time.perf_counter()
            function()
            row[i] = time.perf_counter() - began
    gc.enable()
    return found


def quartiles(values: np.ndarray) -> str:
    low, middle, high = statistics.quantiles(values.tolist(), n=4)
    return f"{middle:6.3f} ({low:.3f} to {high:.3f})"


def drawing(solver: Solver, model: Denoiser, knots: Knots, n: int, size: int) -> tuple[Any, Any]:
    """(jitted function of (params, keys, x), its arguments): the solver from noise x to the last knot."""
    keys = sample_keys(jax.random.key(0), jnp.arange(n))
    x = float(knots.sigma[0]) * jax.random.normal(jax.random.key(1), (n, size))
    params = model.init(jax.random.key(2), {"x": x})

    def draw(params: Any, keys: Any, x: Any) -> Any:
        denoise = lambda x, t: model.denoise(params, x, jnp.broadcast_to(t, x.shape[:1]))
        return solver.solve(denoise, model.path, knots, x, noise_of_steps(keys, x)).x

    return jax.jit(draw), (params, keys, x)


class Small(Net):
    """Two dense layers: little enough that it is the loop that is timed."""

    width: int = 64

    @nn.compact
    def __call__(self, x: Any, noise: Any, label: Any = None, train: bool = False) -> Any:
        h = jnp.concatenate([x, noise[:, None] / 1000.0], axis=1)
        h = nn.silu(nn.Dense(self.width)(h))
        return nn.Dense(x.shape[1])(h)
