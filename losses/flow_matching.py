"""Conditional flow matching on any path, with any coupling of noise and data; stochastic interpolants.

    (1)  xₜ = α(t)·x₀ + σ(t)·ε + γ(t)·z,   (x₀, ε) from the coupling, z ~ N(0, I)
    (2)  γ(t) = spread·√(t(1−t))                                           2303.08797; spread = 0: no z at all
    (3)  L = E ‖u(xₜ, t) − (α̇·x₀ + σ̇·ε + γ̇·z)‖² / D                       2210.02747 eq. 9; 2209.03003 eq. 1

The minimiser of (3) is u(x, t) = E[ẋₜ | xₜ = x], the field whose ODE has xₜ's densities as its own whatever the
coupling. With the coupling `pairs` it is reflow (2209.03003 §2.1), and with all times at 1 besides (losses/times.py,
`point`) reflow's distillation to one step: Euler's single step is then what is regressed. With spread > 0, x̂₀ and the
score that follow from u by α and σ are not xₜ's: no guidance by gradients and no stochastic solver is right with them.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective, check_dropout, class_condition, mean_over_dims, told
from losses.times import TimeDistribution
from losses.times import Uniform as UniformTimes
from models.denoiser import Denoiser
from models.model import Batch, Model, Variables
from paths.couplings import Coupling, Independent
from paths.path import expand

EDGE = 1e-3  # γ̇ is infinite at t = 0 and 1


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Loss):
    """Eq. (3), for a model whose network says the velocity."""

    times: TimeDistribution = field(default_factory=UniformTimes)
    coupling: Coupling = field(default_factory=Independent)
    label_dropout: float = 0.0  # fraction of labels replaced by "no class", for classifier-free guidance
    spread: float = 0.0  # of the noise z that a stochastic interpolant adds between the ends, eq. (2)

    def __post_init__(self) -> None:
        check_dropout(self.label_dropout)

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, Denoiser) or model.predicts != "velocity":
            said = model.predicts if isinstance(model, Denoiser) else type(model).__name__
            raise ValueError(f"flow matching regresses a velocity (--model.predicts velocity), got {said}")
        time_key, noise_key, label_key, dropout_key, spread_key = jax.random.split(key, 5)
        x0 = batch["x"]
        t = self.times(time_key, x0.shape[0], model.path)
        eps = self.coupling.noise(noise_key, told(model, batch))
        if self.spread:
            t = jnp.clip(t, EDGE, 1.0 - EDGE)
        xt = model.path.interpolate(x0, eps, t)
        target = model.target(x0, eps, t)
        if self.spread:
            z = jax.random.normal(spread_key, x0.shape, x0.dtype)
            gamma = self.spread * jnp.sqrt(t * (1.0 - t))
            xt = xt + expand(gamma, x0) * z
            target = target + expand(self.spread**2 * (1.0 - 2.0 * t) / (2.0 * gamma), x0) * z
        condition = class_condition(label_key, batch, self.label_dropout)
        squared = mean_over_dims((model.raw(variables, xt, t, condition, dropout_key) - target) ** 2)
        return Objective(squared, {}, variables["state"])
