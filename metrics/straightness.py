"""How straight a flow's trajectories are, and how much energy they take.

Along x(t) of the probability-flow ODE from noise (t₁) to data (t₀), with velocity u:

    (1)  straightness  S = ∫ E‖Δ/(t₁−t₀) − u(x(t), t)‖² dt,  Δ = x(t₁) − x(t₀)      2209.03003; 0: one Euler step
    (2)  path energy   K = ∫ E‖u(x(t), t)‖² dt                                     2302.00482
    (3)  S = K − E‖Δ‖²/(t₁−t₀): energy spent on bends alone

In data units squared, summed over dimensions; in N equal steps of Euler's method, so Δ is exactly the sum of the steps
and (3) holds to rounding. On the rectified path; on others u is not a straight line even for one data point.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metrics.examples import denoiser
from metrics.metric import Evaluation, Metric
from models.denoiser import Denoiser
from models.model import Condition, Variables
from samplers.diffusion import first_noise
from samplers.sampler import sample_keys


def straightness_and_energy(
    model: Denoiser,
    variables: Variables,
    keys: Key[Array, " n"],
    shape: tuple[int, ...],
    steps: int = 100,
    condition: Condition = None,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """S and K of the trajectory of each key's noise."""
    last, first = model.t_max, model.path.t_min
    h = (last - first) / steps
    x = float(model.path.sigma(last)) * first_noise(keys, shape)
    times = jnp.asarray(np.linspace(last, first, steps, endpoint=False), x.dtype)

    def squared(value: Any) -> Float[Array, " n"]:
        return jnp.sum(value**2, axis=tuple(range(1, value.ndim)))

    def body(carry: Any, row: Any) -> tuple[Any, None]:
        x, mean, bends, energy = carry
        t, count = row
        u = model.velocity(variables, x, jnp.full(x.shape[:1], t), condition)
        # Welford's update: K − E‖Δ‖² by subtraction would leave rounding where a flow is straight.
        away = u - mean
        mean = mean + away / count
        bends = bends + jnp.sum(away * (u - mean), axis=tuple(range(1, x.ndim)))
        return (x - h * u, mean, bends, energy + squared(u)), None

    zero = jnp.zeros(x.shape[0], x.dtype)
    start = (x, jnp.zeros_like(x), zero, zero)
    (_, _, bends, energy), _ = jax.lax.scan(body, start, (times, jnp.arange(1.0, steps + 1.0)))
    return h * bends, h * energy


@dataclass(frozen=True, kw_only=True)
class Straightness(Metric):
    """Straightness (1) and path energy (2) of the model's own trajectories."""

    samples: int = 1000
    steps: int = 100  # of Euler's method
    seed: int = 0

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = denoiser(evaluation.model, "straightness")
        keys = sample_keys(jax.random.key(self.seed), jnp.arange(self.samples))
        label = jnp.arange(self.samples, dtype=jnp.int32)
        condition = {"label": label % model.num_classes} if model.num_classes else None

        @jax.jit
        def measured(variables: Variables) -> Any:
            return straightness_and_energy(model, variables, keys, evaluation.data.shape, self.steps, condition)

        S, K = measured(evaluation.variables)
        return {"straightness": float(jnp.mean(S)), "path_energy": float(jnp.mean(K))}
