"""What a decoder's numbers say about pixels: a likelihood, so that a reconstruction has a rate in bits.

x lies on n levels in [−1, 1], Δ = 2/(n − 1) apart; the first level's bin reaches to −∞ and the last one's to ∞. With F
a distribution function,

    (1)  log P(x | z) = Σ over pixels log [F((x + Δ/2 − μ)/s) − F((x − Δ/2 − μ)/s)]
         gaussian     F = Φ,  s one number for all pixels, learned or given            1312.6114 app. C.2; 2006.13202
         logistic     F(y) = 1/(1 + e^−y),  s said of each pixel                       1606.04934 eq. 13; 1701.05517
    (2)  categorical  log P(x | z) = Σ over pixels log softmax(l)_x,  l logits of all levels

Nats; bits/dim are −log P/(D·log 2), without a constant. Of continuous data (1) is the density.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]
Said = Float[Array, "b h w f"]  # the decoder's numbers

LEAST_LOG_SCALE = -7.0  # of the logistic: below it every level but one has no probability at all


@dataclass(frozen=True, kw_only=True)
class Observation(ABC):
    """Base of all likelihoods."""

    @abstractmethod
    def features(self, channels: int, levels: int | None) -> int:
        """How many numbers it asks the decoder for, a pixel."""

    def init(self) -> dict[str, Any]:
        """Parameters of its own."""
        return {}

    @abstractmethod
    def log_prob(self, params: Any, said: Said, x: Image, levels: int | None) -> Float[Array, " b"]:
        """Eq. (1) or (2), in nats; `levels` is None where x is continuous."""

    @abstractmethod
    def mean(self, said: Said, levels: int | None) -> Image:
        """The image that is shown, in [−1, 1]."""


def _summed(values: Image) -> Float[Array, " b"]:
    return jnp.sum(values.astype(jnp.float32), axis=(1, 2, 3))


def _log_difference(upper: Any, lower: Any) -> Any:
    """log(e^upper − e^lower), upper > lower."""
    return upper + jnp.log1p(-jnp.exp(jnp.minimum(lower - upper, -1e-7)))


def _binned(log_cdf: Any, mean: Image, scale: Any, x: Image, levels: int) -> Float[Array, " b"]:
    """Eq. (1), where F is symmetric: 1 − F(y) = F(−y)."""
    half = 1.0 / (levels - 1)
    # On the side of μ where both values of F are small: their difference is then exact.
    side = jnp.where(x > mean, -1.0, 1.0)
    away = side * (x - mean)
    log_f_upper, log_f_lower = log_cdf((away + half) / scale), log_cdf((away - half) / scale)
    first = x < -1.0 + half  # its bin has no lower end
    last = x > 1.0 - half
    outer = jnp.where(first, log_cdf((x + half - mean) / scale), log_cdf((mean - x + half) / scale))
    return _summed(jnp.where(first | last, outer, _log_difference(log_f_upper, log_f_lower)))


@dataclass(frozen=True, kw_only=True)
class Gaussian(Observation):
    """Eq. (1): the squared error, and what it is worth."""

    scale: float | None = None  # s on [−1, 1]; None: learned, starting from 1/2

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0.0:
            raise ValueError(f"a standard deviation is positive, got scale={self.scale}")

    def features(self, channels: int, levels: int | None) -> int:
        return channels

    def init(self) -> dict[str, Any]:
        return {} if self.scale else {"log_scale": jnp.log(0.5)}

    def log_prob(self, params: Any, said: Said, x: Image, levels: int | None) -> Float[Array, " b"]:
        scale = self.scale or jnp.exp(params["log_scale"])
        if levels is None:
            return _summed(jax.scipy.stats.norm.logpdf(x, said, scale))
        return _binned(log_ndtr, said, scale, x, levels)

    def mean(self, said: Said, levels: int | None) -> Image:
        return jnp.clip(said, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Logistic(Observation):
    """Eq. (1), with a scale for each pixel: where the decoder is sure a pixel costs next to nothing."""

    def features(self, channels: int, levels: int | None) -> int:
        return 2 * channels

    def log_prob(self, params: Any, said: Said, x: Image, levels: int | None) -> Float[Array, " b"]:
        mean, log_scale = jnp.split(said, 2, axis=-1)
        scale = jnp.exp(jnp.maximum(log_scale, LEAST_LOG_SCALE))
        if levels is None:
            return _summed(jax.scipy.stats.logistic.logpdf(x, mean, scale))
        return _binned(jax.nn.log_sigmoid, mean, scale, x, levels)

    def mean(self, said: Said, levels: int | None) -> Image:
        return jnp.clip(jnp.split(said, 2, axis=-1)[0], -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Categorical(Observation):
    """Eq. (2): any distribution over the levels of a pixel."""

    def features(self, channels: int, levels: int | None) -> int:
        if levels is None:
            raise ValueError("a categorical likelihood is of data in levels, and this is continuous")
        return channels * levels

    def log_prob(self, params: Any, said: Said, x: Image, levels: int | None) -> Float[Array, " b"]:
        logits = said.reshape(*x.shape, levels or -1)
        level = jnp.round((x + 1.0) * (0.5 * (logits.shape[-1] - 1))).astype(jnp.int32)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        return _summed(jnp.take_along_axis(log_probs, level[..., None], axis=-1)[..., 0])

    def mean(self, said: Said, levels: int | None) -> Image:
        logits = said.reshape(*said.shape[:-1], -1, levels or 1)
        values = jnp.linspace(-1.0, 1.0, logits.shape[-1])
        return jax.nn.softmax(logits, axis=-1) @ values
