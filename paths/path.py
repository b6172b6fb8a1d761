"""Gaussian paths from data to noise, and everything that follows from α and σ alone.

Convention: t ∈ [0, 1], **t = 0 is data, t = 1 is noise**.

    (1)  xₜ = α(t)·x₀ + σ(t)·ε,  ε ~ N(0, I)
    (2)  λ(t) = log(α²/σ²), the log signal-to-noise ratio; strictly decreasing in t
    (3)  dx = f(t)·x dt + g(t) dw,  f = α̇/α,  g² = 2σσ̇ − 2fσ²      (Kingma et al. 2107.00630, eq. 2 and app. L)
    (4)  dx/dt = α̇·x₀ + σ̇·ε, in expectation the probability-flow ODE (Song et al. 2011.13456, eq. 13)

A path states α and σ; λ, f, g and the derivatives are derived from them here and nowhere restated. Sampling starts from
N(0, σ(1)²·I).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Times = Float[Array, "*t"] | Float[np.ndarray, "*t"] | float


def namespace(t: Any) -> ModuleType:
    """`jax.numpy` for traced or device values, `numpy` (hence float64) for host values."""
    return jnp if isinstance(t, jax.Array) else np


def expand(coefficient: Any, x: Float[Array, "b *s"]) -> Float[Array, "b *_"]:
    """A coefficient [B] with as many trailing axes of length 1 as x has."""
    return jnp.reshape(coefficient, (-1,) + (1,) * (x.ndim - 1))


@dataclass(frozen=True, kw_only=True)
class Path(ABC):
    """Base of all paths. A new one is a frozen dataclass with `alpha(t)` and `sigma(t)`.

    Both take host floats (float64 out) or JAX arrays (their dtype out), and are smooth in t where g(t) is asked for.
    """

    @property
    def t_min(self) -> float:
        """The data end, at which training, grids and adaptive solves stop: 1/σ is integrable only from here."""
        return 1e-5

    @property
    def t_max(self) -> float:
        """The noise end."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Times) -> Any:
        """Scale of the data in (1)."""

    @abstractmethod
    def sigma(self, t: Times) -> Any:
        """Scale of the noise in (1)."""

    def interpolate(
        self, x0: Float[Array, "b *s"], eps: Float[Array, "b *s"], t: Float[Array, " b"]
    ) -> Float[Array, "b *s"]:
        """xₜ of (1)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def input_scale(self, t: Times) -> Any:
        """c_in of every face but EDM's: 1, unless the path's variance grows without bound."""
        return namespace(t).ones_like(t)

    def snap(self, t: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Moves host times onto those at which a discrete path was trained; the identity for a continuous one."""
        return t

    def log_snr(self, t: Times) -> Any:
        """λ(t) of (2), in nats. ±∞ where σ or α is 0."""
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def time_of_log_snr(self, log_snr: Times) -> Any:
        """Inverse of λ, by bisection on [0, 1]; values outside λ's range go to its ends."""
        xp = namespace(log_snr)
        target = xp.asarray(log_snr)
        low, high = xp.zeros_like(target), xp.ones_like(target)
        for _ in range(60 if xp is np else 26):  # float64 and float32 mantissas
            middle = 0.5 * (low + high)
            too_clean = self.log_snr(middle) > target
            low, high = xp.where(too_clean, middle, low), xp.where(too_clean, high, middle)
        # The ends themselves are reachable: a bisection alone would stop half an ulp short of t = 1.
        return xp.where(self.log_snr(xp.ones_like(target)) >= target, 1.0, 0.5 * (low + high))

    def derivatives(self, t: Times) -> tuple[Any, Any]:
        """(α̇, σ̇) at t, by forward-mode differentiation of α and σ."""
        if isinstance(t, jax.Array):
            one = jnp.ones_like(t)
            return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]
        # Host values stay on the host also while a caller is being traced.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            alpha_dot, sigma_dot = self.derivatives(jnp.asarray(t, jnp.float64))
            return np.asarray(alpha_dot), np.asarray(sigma_dot)

    def drift(self, t: Times) -> Any:
        """f(t) of (3); −∞ where α = 0."""
        return self.derivatives(t)[0] / self.alpha(t)

    def diffusion_squared(self, t: Times) -> Any:
        """g(t)² of (3)."""
        alpha_dot, sigma_dot = self.derivatives(t)
        sigma = self.sigma(t)
        return 2.0 * sigma * (sigma_dot - sigma * alpha_dot / self.alpha(t))
