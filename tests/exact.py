"""A Gaussian mixture whose denoiser is known in closed form, seen through any face of a network."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from models.denoiser import Denoiser, expand
from models.mlp import MLP
from models.model import Batch, Condition, Variables
from paths.schedules import EDM, VE, VP, Cosine, DDPMLinear, Rectified, SubVP

PATHS = {
    "vp": VP(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "cosine": Cosine(),
    "rectified": Rectified(),
    "ddpm": DDPMLinear(),
    "edm": EDM(),
}
MEANS = np.asarray([[-1.0, 0.5], [0.8, -0.3], [0.2, 1.1]])
STD = 0.25
WEIGHTS = np.asarray([0.5, 0.3, 0.2])


def denoise(path, x, t):
    """E[x₀ | xₜ = x] of the mixture Σ w_k N(μ_k, s²I), x [n, 2], t [n]."""
    alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
    variance = alpha**2 * STD**2 + sigma**2
    means = jnp.asarray(MEANS, x.dtype)
    away = x[:, None, :] - alpha[:, :, None] * means[None]
    logits = jnp.log(jnp.asarray(WEIGHTS, x.dtype))[None] - 0.5 * jnp.sum(away**2, -1) / variance
    weights = jax.nn.softmax(logits, axis=-1)
    posterior = means[None] + (alpha * STD**2 / variance)[:, :, None] * away
    return jnp.sum(weights[:, :, None] * posterior, axis=1)


@dataclass(frozen=True, kw_only=True)
class Exact(Denoiser):
    """A denoiser whose network says, in the chosen face, exactly what the mixture's posterior mean implies."""

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        return {"params": {}, "state": {}}

    def raw(self, variables, x, t, condition: Condition = None, dropout=None):
        x0 = denoise(self.path, x, t)
        eps = (x - expand(self.path.alpha(t), x) * x0) / expand(self.path.sigma(t), x)
        return self.target(x0, eps, t)


def exact(path, predicts="x0") -> Exact:
    return Exact(net=MLP(), path=path, predicts=predicts)
