"""How noise is paired with data before xₜ = α·x₀ + σ·ε is formed.

    (1)  independent    ε_i ~ N(0, I)                                      2209.03003 eq. 1; 2210.02747
    (2)  minibatch_ot   argmin_π Σ_i ‖x_i − ε_π(i)‖², exactly              2302.00482 alg. 3; 2304.14772
    (3)  sinkhorn       ε of row i drawn from P_i·,  P = argmin Σ P_ij C_ij − reg·C̄·H(P),  P1 = Pᵀ1 = 1/B
                        (entropic plan, Cuturi 1306.0895; C̄ the mean of C) 2302.00482
    (4)  pairs          the batch brings the ε that a teacher made x₀ from: reflow, 2209.03003 §2.1

(2) and (3) never pair across classes where the batch has labels: each class's noise is divided among its own examples
alone, so that given the class it is still N(0, I), which is what the sampler will start from. Losses hand the labels on
only where the model is told them too. Under all but (1) the regressed velocity is a flow's, but x̂₀ and the score are
not those of xₜ's density: no guidance by gradients and no stochastic solver is right with them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Batch = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Coupling(ABC):
    """Base of all couplings: gives each data point of a batch its noise."""

    @abstractmethod
    def noise(self, key: Key[Array, ""], batch: Batch) -> Float[Array, "b *s"]:
        """ε [b, *s] of the examples `batch["x"]`, standard normal as a whole."""


@dataclass(frozen=True, kw_only=True)
class Independent(Coupling):
    """ε ~ N(0, I), drawn without looking at the data: diffusion and plain flow matching."""

    def noise(self, key: Key[Array, ""], batch: Batch) -> Float[Array, "b *s"]:
        x0 = batch["x"]
        return jax.random.normal(key, x0.shape, x0.dtype)


@dataclass(frozen=True, kw_only=True)
class MinibatchOT(Coupling):
    """Eq. (2): a permutation of independent noise, by scipy's exact assignment on the host."""

    NAME = "minibatch_ot"

    def noise(self, key: Key[Array, ""], batch: Batch) -> Float[Array, "b *s"]:
        x0 = batch["x"]
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        like = jax.ShapeDtypeStruct((x0.shape[0],), jnp.int32)
        cost = squared_distances(x0, eps)
        return eps[jax.pure_callback(_assign, like, cost, _labels(batch))]


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Coupling):
    """Eq. (3): noise drawn from the entropic plan; on the device throughout."""

    reg: float = 0.05  # weight of the entropy, over the mean cost
    iterations: int = 100  # of row and column scaling

    def __post_init__(self) -> None:
        if not self.reg > 0 or self.iterations < 1:
            raise ValueError(f"{self}: reg must be above 0 and iterations at least 1")

    def noise(self, key: Key[Array, ""], batch: Batch) -> Float[Array, "b *s"]:
        noise_key, choice_key = jax.random.split(key)
        x0 = batch["x"]
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        label = _labels(batch)
        plan = self.log_plan(squared_distances(x0, eps), label[:, None] == label[None, :])
        return eps[jax.random.categorical(choice_key, plan, axis=1)]

    def log_plan(self, cost: Float[Array, "b b"], allowed: Bool[Array, "b b"]) -> Float[Array, "b b"]:
        """log(B·P) of (3), −∞ where a pair is not allowed. Rows sum to B·P1 = 1, columns nearly."""
        kernel = jnp.where(allowed, -cost / (self.reg * jnp.mean(cost) + 1e-30), -jnp.inf)

        def scale(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            f, g = carry
            g = -jax.nn.logsumexp(kernel + f[:, None], axis=0)
            f = -jax.nn.logsumexp(kernel + g[None, :], axis=1)
            return (f, g), None

        zero = jnp.zeros(cost.shape[0], cost.dtype)
        (f, g), _ = jax.lax.scan(scale, (zero, zero), None, length=self.iterations)
        return kernel + f[:, None] + g[None, :]


@dataclass(frozen=True, kw_only=True)
class Pairs(Coupling):
    """Eq. (4): the noise that stands beside each example in the data (training/reflow.py)."""

    def noise(self, key: Key[Array, ""], batch: Batch) -> Float[Array, "b *s"]:
        if "noise" not in batch:
            raise ValueError(
                "the coupling `pairs` needs data that brings its own noise: --data reflow --data.teacher RUN"
            )
        return batch["noise"]


def squared_distances(x: Float[Array, "b *s"], y: Float[Array, "c *s"]) -> Float[Array, "b c"]:
    """All ‖x_i − y_j‖², by one matrix product in float32."""
    x, y = (side.reshape(side.shape[0], -1).astype(jnp.float32) for side in (x, y))
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :] - 2.0 * product, 0.0)


def _labels(batch: Batch) -> Int[Array, " b"]:
    """The batch's classes; one and the same for all where it has none."""
    return batch["label"] if "label" in batch else jnp.zeros(batch["x"].shape[0], jnp.int32)


def _assign(cost: Any, label: Any) -> Int[np.ndarray, " b"]:
    """The cheapest assignment within each class, of host arrays: row i of the data takes noise `result[i]`."""
    from scipy.optimize import linear_sum_assignment

    cost, label = np.asarray(cost), np.asarray(label)
    chosen = np.empty(len(cost), np.int32)
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        _, columns = linear_sum_assignment(cost[np.ix_(members, members)])
        chosen[members] = members[columns]
    return chosen
