"""A time in which the probability-flow ODE is smooth on every path, for solvers that choose their own steps.

    (1)  w = −log(α/σ + c),  c = 0, or 1 where λ(t_max) < −13.8: where α(t_max) = 0, say, and log α/σ would be −∞
    (2)  dt/dw = σ(α + cσ)/(ασ̇ − α̇σ)

In t the velocity is steep near data, and DDPM's has 1,000 kinks, where its table is interpolated.
"""

from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from paths.path import Path
from paths.predictions import LOWEST_LOG_SNR

KNOTS = 2**14  # of the table t(w): linear between them, relative error in t about 1e-7


class Clock:
    """w of (1) on a path between t_min and t_max; rises with t."""

    def __init__(self, path: Path, t_min: float, t_max: float) -> None:
        self.path, self.t_min, self.t_max = path, t_min, t_max
        self.offset = 0.0 if path.log_snr(t_max) >= LOWEST_LOG_SNR else 1.0  # c
        self.first, self.last = (float(self.at(np.asarray(t))) for t in (t_min, t_max))

    def at(self, t: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """w at host times."""
        return np.asarray(-np.log(self.path.alpha(t) / self.path.sigma(t) + self.offset))

    @cached_property
    def _table(self) -> Float[np.ndarray, "knots"]:
        w = np.linspace(self.first, self.last, KNOTS + 1)
        with np.errstate(divide="ignore"):
            log_snr = 2.0 * np.log(np.maximum(np.exp(-w) - self.offset, 0.0))
        return np.clip(self.path.time_of_log_snr(log_snr), self.t_min, self.t_max)

    def time(self, w: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """t and dt/dw, on the device."""
        position = jnp.clip((w - self.first) * (KNOTS / (self.last - self.first)), 0, KNOTS)
        index = jnp.minimum(position.astype(int), KNOTS - 1)
        ahead = jnp.asarray(np.diff(self._table), w.dtype)[index]  # taken on the host: float32 neighbours would cancel
        t = jnp.asarray(self._table, w.dtype)[index] + (position - index) * ahead
        (alpha_dot, sigma_dot), alpha, sigma = self.path.derivatives(t), self.path.alpha(t), self.path.sigma(t)
        return t, sigma * (alpha + self.offset * sigma) / (alpha * sigma_dot - alpha_dot * sigma)
