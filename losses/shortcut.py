"""Shortcut models: a jump of 2d equals two jumps of d (2410.12557).

    (1)  x_{t−d} = xₜ − d·U(xₜ, t, t−d),  U the mean velocity (models/jump.py, eq. 2);  2d ∈ {2/N, 4/N, …, 1}
    (2)  U(xₜ, t, t−2d) ← sg[½·U(xₜ, t, t−d) + ½·U(x_{t−d}, t−d, t−2d)]       eq. 4-5, self-consistency
    (3)  U(xₜ, t, t) ← ε − x₀                                                flow matching on the rest of the batch

The smallest jumps, of 2/N, are bootstrapped from (3): both terms of (2) are then read at d = 0. As in the paper, a
quarter of the batch is given to (2), and t lies on the grid of its d. The paper's targets are an averaged network's;
here they are the network's own, without gradient.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective, every_class, mean_over_dims
from losses.meanflow import mean_velocity_model
from losses.times import TimeDistribution
from losses.times import Uniform as UniformTimes
from models.model import Batch, Model, Variables
from paths.path import expand


@dataclass(frozen=True, kw_only=True)
class Shortcut(Loss):
    """Eq. (2) on a fraction of the batch, (3) on the rest."""

    levels: int = 7  # log₂ N: jumps of 2/N, 4/N, … 1 of the path are learnt
    bootstrapped: float = 0.25  # fraction of the batch that (2) is given
    times: TimeDistribution = field(default_factory=UniformTimes)  # of (3)

    def __post_init__(self) -> None:
        if self.levels < 1 or not 0 < self.bootstrapped < 1:
            raise ValueError(f"{self}: levels must be at least 1 and bootstrapped between 0 and 1")

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        model = mean_velocity_model(model, "Shortcut")
        time_key, noise_key, _, dropout_key, level_key, index_key, which_key = jax.random.split(key, 7)
        x0 = batch["x"]
        size = x0.shape[0]
        # Level k asks for a jump of 2d = 2ᵏ⁺¹/N made of two of d = 2ᵏ/N, from a multiple of 2d.
        k = jax.random.randint(level_key, (size,), 0, self.levels)
        whole = 2.0 ** (k + 1 - self.levels)
        position = jnp.ceil(jax.random.uniform(index_key, (size,), minval=1e-6) / whole) * whole
        consistent = jax.random.bernoulli(which_key, self.bootstrapped, (size,))
        t = jnp.where(consistent, position, self.times(time_key, size, model.path))
        d = jnp.where(consistent, 0.5 * whole, 0.0)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        xt = model.path.interpolate(x0, eps, t)
        condition = every_class(batch)
        # Half of the smallest jump has never been trained: there the velocity itself stands in.
        asked = jnp.where(k == 0, 0.0, d)
        frozen = jax.lax.stop_gradient(variables["params"])
        teacher = {"params": frozen, "state": variables["state"]}
        first = model.raw(teacher, xt, t, condition, None, t - asked)
        middle = xt - expand(d, x0) * first
        second = model.raw(teacher, middle, t - d, condition, None, t - d - asked)
        share = expand(consistent.astype(x0.dtype), x0)
        target = share * 0.5 * (first + second) + (1.0 - share) * model.target(x0, eps, t)
        said = model.raw(variables, xt, t, condition, dropout_key, t - 2.0 * d)
        squared = mean_over_dims((said - target) ** 2)
        return Objective(squared, {}, variables["state"])
