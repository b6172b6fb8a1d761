"""The driver of all solvers: one compiled scan from noise to data.

x ← σ(t₀)·ε;   for each row of the kernel's table: x ← step(D, x, row)
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.denoiser import Denoise, Denoiser
from models.model import Condition, Model, Variables
from paths.grids import Grid, Knots, Uniform
from paths.path import Path
from samplers.ddim import DDIM
from samplers.kernel import Kernel
from samplers.sampler import Sampler, Samples, normal_like
from samplers.transforms import Transform

PRIOR = 0x7FFFFFFF  # folded into a sample's key for its first noise; steps fold in 0, 1, 2, …


@dataclass(frozen=True, kw_only=True)
class Diffusion(Sampler):
    """Draws from a `Denoiser` with a solver, on a grid, in so many steps."""

    solver: Kernel = field(default_factory=DDIM)
    grid: Grid = field(default_factory=Uniform)
    steps: int = 50  # steps of the solver from noise to data
    transforms: tuple[Transform, ...] = ()  # applied to the denoiser, the first innermost

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        if not isinstance(model, Denoiser):
            raise TypeError(f"the diffusion sampler needs a Denoiser, got {type(model).__name__}")

        def network(x: Float[Array, "n *s"], t: Float[Array, ""]) -> Float[Array, "n *s"]:
            return model.denoise(variables, x, jnp.broadcast_to(t, x.shape[:1]), condition)

        denoise: Denoise = reduce(lambda inner, transform: transform(inner), self.transforms, network)
        knots = self.grid.knots(model.path, self.steps, model.t_max)
        return solve(self.solver, denoise, model.path, knots, keys, shape, trajectory)

    def network_calls(self) -> int:
        return self.steps * self.solver.calls_per_step


def solve(
    kernel: Kernel,
    denoise: Denoise,
    path: Path,
    knots: Knots,
    keys: Key[Array, " n"],
    shape: tuple[int, ...],
    trajectory: bool = False,
) -> Samples:
    """Runs `kernel` along `knots` under one `lax.scan`.

    Args:
      denoise: `(x [n, *shape], t scalar) → x̂₀`.
      keys: one a sample; step i uses `fold_in(key, i)`.
      trajectory: also return all N + 1 states; otherwise none is kept.
    """
    rows = {name: jnp.asarray(value, float) for name, value in kernel.rows(path, knots).items()}
    start = jax.vmap(lambda key: jax.random.fold_in(key, PRIOR))(keys)
    noise = normal_like(start, jnp.zeros((keys.shape[0], *shape)))
    carry = kernel.init(float(knots.sigma[0]) * noise, rows)

    def body(carry: Any, row_and_index: Any) -> tuple[Any, Any]:
        row, index = row_and_index
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        carry = kernel.step(denoise, carry, row, step_keys)
        return carry, carry["x"] if trajectory else None

    first = carry["x"]
    carry, states = jax.lax.scan(body, carry, (rows, jnp.arange(knots.steps)))
    return Samples(carry["x"], jnp.concatenate([first[None], states]) if trajectory else None)
