"""MeanFlow: the mean velocity between two times, regressed on what its own derivative says (2505.13447).

    (1)  xₜ = (1−t)·x₀ + t·ε,  v = ε − x₀                                   the rectified path
    (2)  U(x, t, s) = 1/(t−s)·∫ₛᵗ u dτ,  so  U = u − (t−s)·dU/dt             eq. 3 and 6
    (3)  dU/dt = v·∂ₓU + ∂ₜU: one Jacobian-vector product with (v, 1, 0)     eq. 8
    (4)  L = w·‖U − sg[v − (t−s)·dU/dt]‖²/D,  w = sg[1/(‖·‖²/D + c)ᵖ]        eq. 9-10 and app. B.2, adaptive weight

On a fraction of the batch s = t, where (4) is flow matching. One step from noise is then x₀ = ε − U(ε, 1, 0).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.loss import Loss, Objective, every_class, mean_over_dims, told
from losses.times import LogitNormal, TimeDistribution
from models.jump import Jump
from models.model import Batch, Model, Variables
from paths.couplings import Coupling, Independent
from paths.path import expand
from paths.schedules import Rectified


def mean_velocity_model(model: Model, loss: str) -> Jump:
    """`model`, if its F is a mean velocity: a `Jump` on the rectified path that says the velocity.

    Raises:
      ValueError: it is not; says what is needed.
    """
    if not isinstance(model, Jump) or not isinstance(model.path, Rectified) or model.predicts != "velocity":
        raise ValueError(f"{loss} trains a Jump on the rectified path that predicts velocity, got {model}")
    return model


def two_times(
    key: Key[Array, ""], times: TimeDistribution, model: Jump, size: int
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(t, s) with t ≥ s, both from one distribution."""
    first, second = jax.random.split(key)
    a, b = times(first, size, model.path), times(second, size, model.path)
    return jnp.maximum(a, b), jnp.minimum(a, b)


@dataclass(frozen=True, kw_only=True)
class MeanFlow(Loss):
    """Eq. (4)."""

    times: TimeDistribution = field(default_factory=lambda: LogitNormal(mean=-0.4))
    coupling: Coupling = field(default_factory=Independent)
    instantaneous: float = 0.5  # fraction of the batch with s = t
    power: float = 1.0  # p of the adaptive weight; 0 is the plain square
    offset: float = 1e-3  # c of the adaptive weight

    def __post_init__(self) -> None:
        if not 0.0 <= self.instantaneous <= 1.0 or self.power < 0.0 or self.offset <= 0.0:
            raise ValueError(f"{self}: instantaneous is in [0, 1], power at least 0 and offset above 0")

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        model = mean_velocity_model(model, "MeanFlow")
        time_key, noise_key, _, dropout_key, same_key = jax.random.split(key, 5)
        x0 = batch["x"]
        t, s = two_times(time_key, self.times, model, x0.shape[0])
        s = jnp.where(jax.random.bernoulli(same_key, self.instantaneous, t.shape), t, s)
        eps = self.coupling.noise(noise_key, told(model, batch))
        xt = model.path.interpolate(x0, eps, t)
        v = model.target(x0, eps, t)
        condition = every_class(batch)

        def mean_velocity(x: Float[Array, "b *s"], t: Float[Array, " b"]) -> Float[Array, "b *s"]:
            return model.raw(variables, x, t, condition, dropout_key, s)

        U, slope = jax.jvp(mean_velocity, (xt, t), (v, jnp.ones_like(t)))
        target = jax.lax.stop_gradient(v - expand(t - s, x0) * slope)
        squared = mean_over_dims((U - target) ** 2)
        weight = jax.lax.stop_gradient((squared + self.offset) ** -self.power)
        return Objective(weight * squared, {"unweighted": squared}, variables["state"])
