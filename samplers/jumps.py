"""One- and few-step sampling of a model that jumps (models/jump.py).

    (1)  x_s = J(xₜ, t, s) from knot to knot, the last onto data                MeanFlow, 2505.13447; 2410.12557 alg. 2
    (2)  x̂₀ = J(xₜ, t, 0);  x_s = α_s·x̂₀ + σ_s·z,  z new at every knot          consistency models, 2303.01469 alg. 1

(2) for models that know jumps onto data alone. One step is the same in both.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from models.jump import Jump
from models.model import Condition, Model, Variables
from paths.grids import Grid, Uniform
from samplers.diffusion import first_noise
from samplers.sampler import Sampler, noise_of_steps
from samplers.solver import Samples


@dataclass(frozen=True, kw_only=True)
class Jumps(Sampler):
    """Draws from a `Jump` in `steps` network calls."""

    grid: Grid = field(default_factory=Uniform)
    steps: int = 1  # jumps from noise to data, one network call each
    renoise: bool = False  # eq. (2): to data and back, as consistency models are drawn

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        if not isinstance(model, Jump):
            raise TypeError(f"the sampler `jumps` needs a Jump, got {type(model).__name__}")
        knots = self.grid.knots(model.path, self.steps, model.t_max)
        x = float(knots.sigma[0]) * first_noise(keys, shape)
        noise = noise_of_steps(keys, x)
        scale = jnp.asarray(np.stack([knots.alpha[1:], knots.sigma[1:]], axis=1), x.dtype)
        t = jnp.asarray(knots.t, x.dtype)

        def body(x: Any, row: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
            t, s, (alpha, sigma), index = row
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))
            if self.renoise:
                x0 = model.jump(variables, x, t, jnp.zeros_like(s), condition)
                x = alpha * x0 + sigma * noise(index)()
            else:
                x = model.jump(variables, x, t, s, condition)
            return x, x if trajectory else None

        end, states = jax.lax.scan(body, x, (t[:-1], t[1:], scale, jnp.arange(self.steps)))
        return Samples(end, jnp.concatenate([x[None], states]) if trajectory else None)

    def network_calls(self) -> int:
        return self.steps
