"""The driver of all solvers: x ← σ(t₀)·ε, then the solver from the first knot to the last."""

from dataclasses import dataclass, field
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.denoiser import Denoise, Denoiser
from models.model import Condition, Model, Variables
from paths.grids import Grid, Knots, Uniform
from paths.path import Path
from samplers.ddim import DDIM
from samplers.sampler import Sampler, noise_of_steps, normal_like
from samplers.solver import Samples, Solver
from samplers.transforms import Network, Transform

PRIOR = 0x7FFFFFFF  # folded into a sample's key for its first noise; steps fold in 0, 1, 2, …


@dataclass(frozen=True, kw_only=True)
class Diffusion(Sampler):
    """Draws from a `Denoiser` with a solver, on a grid, in so many steps."""

    solver: Solver = field(default_factory=DDIM)
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

        network = Network(model=model, variables=variables, condition=condition)
        denoise: Denoise = network
        for transform in self.transforms:
            denoise = transform(denoise, network)
        knots = self.grid.knots(model.path, self.steps, model.t_max)
        samples = solve(self.solver, denoise, model.path, knots, keys, shape, trajectory)
        return samples if samples.nfe is None else samples._replace(nfe=samples.nfe * self._calls_of_one)

    def network_calls(self) -> int | None:
        calls = self.solver.network_calls(self.steps)
        return None if calls is None else calls * self._calls_of_one

    @property
    def _calls_of_one(self) -> int:
        """Network calls behind one x̂₀."""
        return reduce(lambda inner, transform: transform.calls(inner), self.transforms, 1)


def solve(
    solver: Solver,
    denoise: Denoise,
    path: Path,
    knots: Knots,
    keys: Key[Array, " n"],
    shape: tuple[int, ...],
    trajectory: bool = False,
) -> Samples:
    """Draws the first noise from `keys` and runs `solver` along `knots`.

    Args:
      denoise: `(x [n, *shape], t scalar) → x̂₀`.
      keys: one a sample; step i uses `fold_in(key, i)`.
      trajectory: also return every state; otherwise none is kept.
    """
    x = float(knots.sigma[0]) * first_noise(keys, shape)
    return solver.solve(denoise, path, knots, x, noise_of_steps(keys, x), trajectory)


def first_noise(keys: Key[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "n *shape"]:
    """The ε that each sample starts from, from its key alone."""
    start = jax.vmap(lambda key: jax.random.fold_in(key, PRIOR))(keys)
    return normal_like(start, jnp.zeros((keys.shape[0], *shape)))
