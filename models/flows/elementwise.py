"""Invertible functions of one number, with parameters that a network says: what couplings and autoregressions apply.

    additive    z = x + t                                   log|dz/dx| = 0            NICE 1410.8516 eq. 7
    affine      z = x·eˢ + t                                log|dz/dx| = s            RealNVP 1605.08803 eq. 7
      exp         s = a
      tanh        s = c·tanh(a/c),  c = 2                   |s| < c
      sigmoid     eˢ = sigmoid(a + 2)                       eˢ < 1                    Glow's published code
    spline      models/flows/spline.py

a and t are the network's numbers; where it says 0, additive and affine but for `sigmoid` are the identity.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BOUND = 2.0  # c of `tanh`: one layer stretches by e² at most

Raw = Float[Array, "*b k c"]  # the network's numbers, k an element
Elements = Float[Array, "*b c"]


@dataclass(frozen=True, kw_only=True)
class Elementwise(ABC):
    """Base. Parameters are [*b, k, c] for elements [*b, c]; the result is elements and log-derivatives [*b, c]."""

    @property
    @abstractmethod
    def count(self) -> int:
        """k, how many numbers an element takes."""

    @abstractmethod
    def forward(self, raw: Raw, x: Elements) -> tuple[Elements, Elements]: ...

    @abstractmethod
    def inverse(self, raw: Raw, z: Elements) -> tuple[Elements, Elements]: ...


@dataclass(frozen=True, kw_only=True)
class Additive(Elementwise):
    """Preserves volume."""

    @property
    def count(self) -> int:
        return 1

    def forward(self, raw: Raw, x: Elements) -> tuple[Elements, Elements]:
        return x + raw[..., 0, :], jnp.zeros_like(x)

    def inverse(self, raw: Raw, z: Elements) -> tuple[Elements, Elements]:
        return z - raw[..., 0, :], jnp.zeros_like(z)


@dataclass(frozen=True, kw_only=True)
class Affine(Elementwise):
    """Scale and shift."""

    scale: Literal["exp", "tanh", "sigmoid"] = "tanh"  # how the network's number becomes a scale

    def __post_init__(self) -> None:
        if self.scale not in ("exp", "tanh", "sigmoid"):
            raise ValueError(f"scale={self.scale!r} is not one of exp, tanh, sigmoid")

    @property
    def count(self) -> int:
        return 2

    def _log_scale(self, a: Elements) -> Elements:
        if self.scale == "exp":
            return a
        return BOUND * jnp.tanh(a / BOUND) if self.scale == "tanh" else jax.nn.log_sigmoid(a + 2.0)

    def forward(self, raw: Raw, x: Elements) -> tuple[Elements, Elements]:
        s = self._log_scale(raw[..., 0, :])
        return x * jnp.exp(s) + raw[..., 1, :], s

    def inverse(self, raw: Raw, z: Elements) -> tuple[Elements, Elements]:
        s = self._log_scale(raw[..., 0, :])
        return (z - raw[..., 1, :]) * jnp.exp(-s), -s
