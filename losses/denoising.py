"""One regression for every path and every face of the network.

    (1)  xₜ = α(t)·x₀ + σ(t)·ε
    (2)  L = E_t,ε [ w(t)·‖F(xₜ, t) − y‖² / D ],  y = p·x₀ + q·ε

With the eps face and w = 1 this is DDPM's L_simple (2006.11239, eq. 14); with the velocity face on the rectified path
it is flow matching (2210.02747, eq. 9; 2209.03003, eq. 1); with score and likelihood weighting, the score SDE's
objective (2011.13456, eq. 7); with edm, EDM's (2206.00364, eq. 8).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective
from losses.times import TimeDistribution
from losses.times import Uniform as UniformTimes
from losses.weighting import Uniform as UniformWeighting
from losses.weighting import Weighting
from models.denoiser import Denoiser, expand
from models.model import NULL_LABEL, Batch, Model, Variables
from paths.couplings import Coupling, Independent


@dataclass(frozen=True, kw_only=True)
class Denoising(Loss):
    """Eq. (2), averaged over the D dimensions of an example."""

    weighting: Weighting = field(default_factory=UniformWeighting)
    times: TimeDistribution = field(default_factory=UniformTimes)
    coupling: Coupling = field(default_factory=Independent)
    label_dropout: float = 0.0  # fraction of labels replaced by "no class", for classifier-free guidance

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, Denoiser):
            raise TypeError(f"the denoising loss needs a Denoiser, got {type(model).__name__}")
        time_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
        x0 = batch["x"]
        size = x0.shape[0]
        # No later than the sampler will ask: beyond it ε says nothing of x₀ (paths/predictions.py, NEEDS_SIGNAL).
        t = jnp.minimum(self.times(time_key, size, model.path), model.t_max)
        eps = self.coupling.noise(noise_key, x0)
        xt = expand(model.path.alpha(t), x0) * x0 + expand(model.path.sigma(t), x0) * eps
        condition = None
        if "label" in batch:
            dropped = jax.random.bernoulli(label_key, self.label_dropout, (size,))
            condition = {"label": jnp.where(dropped, NULL_LABEL, batch["label"])}
        error = model.raw(variables, xt, t, condition, dropout_key) - model.target(x0, eps, t)
        squared = jnp.mean(error.astype(jnp.float32) ** 2, axis=tuple(range(1, x0.ndim)))
        return Objective(self.weighting(model, t) * squared, {"unweighted": squared}, variables["state"])
