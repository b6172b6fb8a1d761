"""One regression for every path and every face of the network.

    (1)  xₜ = α(t)·x₀ + σ(t)·ε
    (2)  L = E_t,ε [ w(t)·‖F(xₜ, t) − y‖² / D ],  y = p·x₀ + q·ε

With the eps face and w = 1 this is DDPM's L_simple (2006.11239, eq. 14); with score and likelihood weighting, the score
SDE's objective (2011.13456, eq. 7); with edm, EDM's (2206.00364, eq. 8). ε is drawn without looking at the data; for
other couplings, which move the posterior mean of x₀ and leave only velocities to be learnt, see flow_matching.py.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective, check_dropout, class_condition, mean_over_dims
from losses.times import TimeDistribution
from losses.times import Uniform as UniformTimes
from losses.weighting import Uniform as UniformWeighting
from losses.weighting import Weighting
from models.denoiser import Denoiser
from models.model import Batch, Model, Variables


@dataclass(frozen=True, kw_only=True)
class Denoising(Loss):
    """Eq. (2), averaged over the D dimensions of an example."""

    weighting: Weighting = field(default_factory=UniformWeighting)
    times: TimeDistribution = field(default_factory=UniformTimes)
    label_dropout: float = 0.0  # fraction of labels replaced by "no class", for classifier-free guidance

    def __post_init__(self) -> None:
        check_dropout(self.label_dropout)

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, Denoiser):
            raise TypeError(f"the denoising loss needs a Denoiser, got {type(model).__name__}")
        time_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
        x0 = batch["x"]
        # No later than the sampler will ask: beyond it ε says nothing of x₀ (paths/predictions.py, NEEDS_SIGNAL).
        t = jnp.minimum(self.times(time_key, x0.shape[0], model.path), model.t_max)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        xt = model.path.interpolate(x0, eps, t)
        condition = class_condition(label_key, batch, self.label_dropout)
        squared = mean_over_dims((model.raw(variables, xt, t, condition, dropout_key) - model.target(x0, eps, t)) ** 2)
        return Objective(self.weighting(model, t) * squared, {"unweighted": squared}, variables["state"])
