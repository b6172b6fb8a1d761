"""Data on a lattice in [−1, 1]^D with independent coordinates: its entropy and its denoiser are known exactly."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from data.arrays import ArraySource
from data.dataset import Dataset, Source
from models.denoiser import Denoiser
from models.mlp import MLP
from models.model import Batch, Condition, Variables
from paths.path import expand

LEVELS = np.linspace(-1.0, 1.0, 5)
WEIGHTS = np.asarray([0.4, 0.1, 0.05, 0.15, 0.3])
DIMS = 2
ENTROPY = -DIMS * float(WEIGHTS @ np.log(WEIGHTS))  # nats


@dataclass(frozen=True, kw_only=True)
class Lattice(Dataset):
    """Five levels in two dimensions, each in proportion to its weight; `classes` adds labels."""

    classes: int = 0
    continuous: bool = False  # pretend not to know the lattice

    @property
    def shape(self) -> tuple[int, ...]:
        return (DIMS,)

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def bin_width(self) -> float | None:
        return None if self.continuous else 0.5

    def source(self, split: str) -> Source:
        index = np.random.RandomState(0).choice(len(LEVELS), size=(4000, DIMS), p=WEIGHTS)
        labels = index[:, 0] if self.classes else None
        return ArraySource(index, labels, lambda i: LEVELS[i].astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class LatticeDenoiser(Denoiser):
    """The posterior mean over the levels, said as x̂₀."""

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        return {"params": {}, "state": {}}

    def raw(self, variables, x, t, condition: Condition = None, dropout=None):
        alpha, sigma = expand(self.path.alpha(t), x)[..., None], expand(self.path.sigma(t), x)[..., None]
        levels, weights = (jnp.broadcast_to(jnp.asarray(v, x.dtype), (*x.shape, 5)) for v in (LEVELS, WEIGHTS))
        logits = jnp.log(weights) - 0.5 * ((x[..., None] - alpha * levels) / sigma) ** 2
        return jnp.sum(jax.nn.softmax(logits) * levels, axis=-1)


def lattice_denoiser(path, classes: int = 0) -> LatticeDenoiser:
    return LatticeDenoiser(net=MLP(num_classes=classes), path=path, predicts="x0")
