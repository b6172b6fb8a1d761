"""A Gaussian mixture whose denoiser is known in closed form, seen through any face of a network."""

from dataclasses import dataclass

import jax
import numpy as np

from models.denoiser import Denoiser
from models.mlp import MLP
from models.model import Batch, Condition, Variables
from paths.path import expand
from samplers.check import PATHS
from samplers.targets import Mixture

__all__ = ["MEANS", "PATHS", "STD", "WEIGHTS", "denoise", "exact"]

MEANS = np.asarray([[-1.0, 0.5], [0.8, -0.3], [0.2, 1.1]])
STD = 0.25
WEIGHTS = np.asarray([0.5, 0.3, 0.2])
MIXTURE = Mixture(WEIGHTS, MEANS, np.full((3, 2), STD))


def denoise(path, x, t):
    """E[x₀ | xₜ = x], x [n, 2], t [n]."""
    return MIXTURE.denoise(path)(x, t)


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
