"""Linear bijections of the last axis: activation normalisation, invertible 1×1 convolution, diagonal scale.

With H·W places (1 for vectors), x at each place a row of C numbers:

    (1)  actnorm            z = (x − m)·eˢ                 log|det| = HW·Σ s               Glow 1807.03039 §3.1
         m and s begin as the mean and −log standard deviation of a first batch, so that z begins standardised
    (2)  1×1 convolution    z = W·x                        log|det| = HW·log|det W|        Glow 1807.03039 §3.2
    (3)    as PLU           W = P·L·(U + diag(σ·eˢ))       log|det| = HW·Σ s               Glow eq. 10–11
         L unit lower and U strictly upper triangular. P (int32, where each row is taken from) and σ = ±1 (int8) are
         not trained, but kept with the run.
    (4)  diagonal scale     z = x·eˢ, one s for every number of the example               NICE 1410.8516 §3.3
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params, zeros
from models.model import Condition

SMALLEST_STD = 1e-6  # of a channel that does not vary


def places(x: Float[Array, "b *s"]) -> int:
    """How often the last axis occurs in an example."""
    return int(np.prod(x.shape[1:-1]))


@dataclass(frozen=True, kw_only=True)
class ActNorm(Bijection):
    """Eq. (1). Under a mesh, jit sees the global batch, and so do its first statistics."""

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        axes = tuple(range(x.ndim - 1))
        return {"mean": jnp.mean(x, axes), "log_scale": -jnp.log(jnp.std(x, axes) + SMALLEST_STD)}

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        mean, s = (params[name].reshape((1,) * (x.ndim - 1) + (-1,)) for name in ("mean", "log_scale"))
        return (x - mean) * jnp.exp(s), zeros(x) + places(x) * jnp.sum(s)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        mean, s = (params[name].reshape((1,) * (z.ndim - 1) + (-1,)) for name in ("mean", "log_scale"))
        return z * jnp.exp(-s) + mean, zeros(z) - places(z) * jnp.sum(s)


@dataclass(frozen=True, kw_only=True)
class Invertible1x1(Bijection):
    """Eq. (2) or (3); begins as a random rotation."""

    parametrisation: Literal["plain", "plu"] = "plu"

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        rotation = jax.random.orthogonal(key, x.shape[-1]).astype(x.dtype)
        if self.parametrisation == "plain":
            return {"weight": rotation}
        p, lower, upper = jax.scipy.linalg.lu(rotation)
        diagonal = jnp.diagonal(upper)
        return {
            "lower": jnp.tril(lower, -1),
            "upper": jnp.triu(upper, 1),
            "log_scale": jnp.log(jnp.abs(diagonal)),
            "sign": jnp.where(diagonal < 0, -1, 1).astype(jnp.int8),
            "order": jnp.argmax(p, axis=1).astype(jnp.int32),
        }

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        if self.parametrisation == "plain":
            weight, logdet = params["weight"], jnp.linalg.slogdet(params["weight"])[1]
        else:
            lower, upper = self._triangles(params)
            weight, logdet = _rows(lower, upper.T)[params["order"]], jnp.sum(params["log_scale"])
        return _rows(x, weight), zeros(x) + places(x) * logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        if self.parametrisation == "plain":
            weight, logdet = jnp.linalg.inv(params["weight"]), jnp.linalg.slogdet(params["weight"])[1]
        else:
            lower, upper = self._triangles(params)
            permutation = jnp.eye(z.shape[-1], dtype=lower.dtype)[params["order"]]
            solved = jax.scipy.linalg.solve_triangular(lower, permutation.T, lower=True, unit_diagonal=True)
            weight, logdet = jax.scipy.linalg.solve_triangular(upper, solved), jnp.sum(params["log_scale"])
        return _rows(z, weight), zeros(z) - places(z) * logdet

    def _triangles(self, params: Params) -> tuple[Float[Array, "c c"], Float[Array, "c c"]]:
        """L and U + diag(σ·eˢ) of (3)."""
        s = params["log_scale"]
        lower = jnp.tril(params["lower"], -1) + jnp.eye(len(s), dtype=s.dtype)
        return lower, jnp.triu(params["upper"], 1) + jnp.diag(params["sign"] * jnp.exp(s))


def _rows(x: Float[Array, "*b c"], weight: Float[Array, "d c"]) -> Float[Array, "*b d"]:
    """W·x of every row, in full precision: a GPU's default rounds factors to ten bits, and then W⁻¹·W is not 1."""
    return jnp.matmul(x, weight.T.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)


def check_invertible(params: Params) -> None:
    """Every plain 1×1 convolution among a flow's parameters, by numbers and not while a program is being traced.

    Raises:
      ValueError: a matrix is singular to its precision.
    """
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
        if getattr(path[-1], "key", "") != "weight":
            continue
        values = np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False)  # of each layer of a stack
        wrong = ~(values[..., -1] > np.finfo(weight.dtype).eps * values.shape[-1] * values[..., 0])
        if wrong.any():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"a 1x1 convolution's matrix is not invertible ({name}: smallest singular value "
                f"{values[..., -1].min():.1e}); parametrisation plu cannot become so"
            )


@dataclass(frozen=True, kw_only=True)
class DiagonalScale(Bijection):
    """Eq. (4).

    NICE begins with s = 0. `standardise` begins where the data has the prior's own standard deviation: s moves by no
    more than the learning rate a step, and a pixel that is always black needs s ≈ 7.
    """

    standardise: float = 0.0  # the standard deviation to begin with; 0 begins with s = 0

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        if not self.standardise:
            return {"log_scale": jnp.zeros(x.shape[1:], x.dtype)}
        return {"log_scale": jnp.log(self.standardise / (jnp.std(x, axis=0) + SMALLEST_STD))}

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        s = params["log_scale"][None]
        return x * jnp.exp(s), zeros(x) + jnp.sum(s)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        s = params["log_scale"][None]
        return z * jnp.exp(-s), zeros(z) - jnp.sum(s)
