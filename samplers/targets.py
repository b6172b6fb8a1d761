"""Densities whose diffusion is known in closed form on every path: what solvers and likelihoods are checked against.

For p₀ = Σ_k w_k N(μ_k, diag c_k²) and xₜ = α·x₀ + σ·ε:

    (1)  pₜ = Σ_k w_k N(αμ_k, v_k),  v_k = α²c_k² + σ²
    (2)  E[x₀ | xₜ = x] = Σ_k r_k(x)·(μ_k + αc_k²/v_k·(x − αμ_k)),  r_k the responsibilities under (1)
    (3)  on the line the probability-flow ODE keeps ranks: x_s = F_s⁻¹(Fₜ(xₜ)),  F the distribution function of (1)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.special import ndtr

from models.denoiser import Denoise
from paths.path import Path


@dataclass(frozen=True)
class Mixture:
    """A mixture of axis-aligned Gaussians; one component is an anisotropic Gaussian."""

    weights: Float[np.ndarray, "k"]
    means: Float[np.ndarray, "k d"]
    stds: Float[np.ndarray, "k d"]

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        return self.weights @ self.means

    @property
    def variance(self) -> Float[np.ndarray, "d"]:
        """Of each coordinate."""
        return self.weights @ (self.means**2 + self.stds**2) - self.mean**2

    def _terms(
        self, path: Path, x: Float[Array, "b d"], t: Float[Array, "..."]
    ) -> tuple[Float[Array, "b k"], Float[Array, "b 1 1"], Float[Array, "b k d"], Float[Array, "b k d"]]:
        """log of each term of (1), α, v and x − αμ."""
        t = jnp.broadcast_to(t, x.shape[:1])[:, None, None]
        alpha = path.alpha(t)
        v = alpha**2 * jnp.asarray(self.stds**2, x.dtype)[None] + path.sigma(t) ** 2
        away = x[:, None, :] - alpha * jnp.asarray(self.means, x.dtype)[None]
        log_weights = jnp.log(jnp.asarray(self.weights, x.dtype))[None]
        exponent = -0.5 * jnp.sum(away**2 / v + jnp.log(2.0 * np.pi * v), axis=-1)
        return log_weights + exponent, alpha, v, away

    def log_prob(self, path: Path, x: Float[Array, "b d"], t: Float[Array, "..."]) -> Float[Array, " b"]:
        """log pₜ(x), in nats; t one for all or one each."""
        return jax.nn.logsumexp(self._terms(path, x, t)[0], axis=1)

    def denoise(self, path: Path) -> Denoise:
        """Eq. (2) as the solvers take it."""

        def exact(x: Float[Array, "b d"], t: Float[Array, "..."]) -> Float[Array, "b d"]:
            logits, alpha, v, away = self._terms(path, x, jnp.asarray(t, x.dtype))
            r = jax.nn.softmax(logits, axis=1)
            means, variances = (jnp.asarray(m, x.dtype)[None] for m in (self.means, self.stds**2))
            return jnp.sum(r[:, :, None] * (means + alpha * variances / v * away), axis=1)

        return exact

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "{n} d"]:
        """n exact samples of p₀."""
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(self.weights), (n,), p=jnp.asarray(self.weights))
        return jnp.asarray(self.means)[k] + jnp.asarray(self.stds)[k] * jax.random.normal(noise, (n, self.dim))

    def quantile(self, path: Path, u: Float[np.ndarray, " n"], t: float) -> Float[np.ndarray, " n"]:
        """Fₜ⁻¹(u) of (3) in float64, by bisection. On the line only.

        Along it u is constant, so `quantile(path, u, s)` is where the ODE takes `quantile(path, u, t)`.
        """
        if self.dim != 1:
            raise ValueError(f"quantiles are for densities on the line, not in {self.dim} dimensions")
        alpha, sigma = path.alpha(t), path.sigma(t)
        means, stds = alpha * self.means[:, 0], np.sqrt((alpha * self.stds[:, 0]) ** 2 + sigma**2)
        # The smaller tail is inverted: close to 1 a float64 has few digits left.
        sign, tail = np.where(u > 0.5, -1.0, 1.0), np.minimum(u, 1.0 - u)
        low = np.full(u.shape, (means - 40.0 * stds).min())
        high = np.full(u.shape, (means + 40.0 * stds).max())
        for _ in range(120):
            middle = 0.5 * (low + high)
            mass = ndtr(sign[:, None] * (middle[:, None] - means) / stds) @ self.weights
            below = sign * (mass - tail) < 0
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)


LINE = Mixture(
    weights=np.asarray([0.4, 0.35, 0.25]),
    means=np.asarray([[-1.1], [0.3], [1.34]]),
    stds=np.asarray([[0.3], [0.2], [0.4]]),
)
PLANE = Mixture(
    weights=np.asarray([0.5, 0.3, 0.2]),
    means=np.asarray([[-1.0, 0.5], [0.8, -0.3], [0.2, 1.1]]),
    stds=np.asarray([[0.25, 0.25], [0.35, 0.2], [0.2, 0.3]]),
)
GAUSSIAN_64 = Mixture(
    weights=np.ones(1),
    means=np.linspace(-0.5, 0.5, 64)[None],
    stds=np.geomspace(0.1, 1.0, 64)[None],
)
