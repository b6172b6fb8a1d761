"""From data in [−1, 1] to what a flow is trained on, as bijections: their log-determinants keep bits/dim honest.

unit    z = ((x + 1)·(n − 1)/2 + ½)/n        n levels, each with its bin, fill [0, 1]: (255v + u)/256 for bytes
scale   z = a·x + b
logit   z = logit(α + (1 − 2α)·x), x in [0, 1]    RealNVP 1605.08803 §4.1 (there α + (1 − α)·x); α .05, MNIST 1e-6
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.flows.bijection import Bijection, Moved, Params, per_example, zeros
from models.model import Condition


@dataclass(frozen=True, kw_only=True)
class Scale(Bijection):
    """a·x + b, of fixed a and b."""

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.scale == 0.0:
            raise ValueError("a scale of 0 has no inverse")

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.scale * x + self.shift, zeros(x) + math.log(abs(self.scale)) * math.prod(x.shape[1:])

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return (z - self.shift) / self.scale, zeros(z) - math.log(abs(self.scale)) * math.prod(z.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Unit(Bijection):
    """Dequantised data of so many levels in [−1, 1] to [0, 1]."""

    levels: int = 256

    def _scale(self) -> Scale:
        slope = (self.levels - 1) / (2.0 * self.levels)
        return Scale(scale=slope, shift=slope + 0.5 / self.levels)

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self._scale().forward(params, x)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self._scale().inverse(params, z)


@dataclass(frozen=True, kw_only=True)
class Logit(Bijection):
    """[0, 1] to the line."""

    alpha: float = 0.05  # how far from 0 and 1 data is kept

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha < 0.5:
            raise ValueError(f"a logit's alpha={self.alpha} is not in [0, 0.5)")

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        p = self.alpha + (1.0 - 2.0 * self.alpha) * x
        z = jnp.log(p) - jnp.log1p(-p)
        return z, per_example(-jnp.log(p) - jnp.log1p(-p) + math.log(1.0 - 2.0 * self.alpha))

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        x = (jax.nn.sigmoid(z) - self.alpha) / (1.0 - 2.0 * self.alpha)
        slopes = jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - math.log(1.0 - 2.0 * self.alpha)
        return x, per_example(slopes)
