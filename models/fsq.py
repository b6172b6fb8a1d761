"""Finite scalar quantization: each number of a latent is rounded to one of a few levels, and there is no codebook.

    (1)  f(z) = ((L − 1)(1 + ε)/2)·tanh(z + s) − o,  o = ½ for even L and 0 for odd,  s so that f(0) = 0; 0 for L = 2
    (2)  q = round(f(z))/⌊L/2⌋, ∂round the identity                                       2309.15505 §3.1, app. A.1
    (3)  k = Σ_i (⌊L_i/2⌋·q_i + ⌊L_i/2⌋)·Π_{j<i} L_j                                      the product of all L codes

Nothing is learned and nothing can die; there is no penalty. The paper's listing has 1 − ε and, for s, tan in place of
artanh, with which f(0) is not 0. Of two levels s would put z = 0 where tanh has no slope, and its one boundary is at 0.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from models.quantize import Indices, Latents, Quantized, Quantizer, histogram, use_of

EPSILON = 1e-3  # ε: f reaches a little beyond the outer levels, so that s is finite


@dataclass(frozen=True, kw_only=True)
class FSQ(Quantizer):
    """Eq. (1)–(3). The paper takes (8, 8, 8) for 2⁹ codes, (8, 5, 5, 5) for 2¹⁰, (7, 5, 5, 5, 5) for 2¹²."""

    levels: tuple[int, ...] = (8, 8, 8)  # L of each number

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"finite scalar quantization needs 2 levels or more of each number, got {self.levels}")

    @property
    def inputs(self) -> int:
        return len(self.levels)

    @property
    def outputs(self) -> int:
        return len(self.levels)

    @property
    def codes(self) -> int:
        return math.prod(self.levels)

    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        return {"params": {}, "state": {}}

    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        levels = self._along(self.levels, z)
        reach = 0.5 * (levels - 1.0) * (1.0 + EPSILON)
        offset = jnp.where(levels % 2 == 0, 0.5, 0.0)
        shift = jnp.where(levels == 2, 0.0, jnp.arctanh(offset / reach))
        bounded = reach * jnp.tanh(z + shift) - offset
        whole = jnp.round(bounded)
        q = (whole + (bounded - jax.lax.stop_gradient(bounded))) / (levels // 2)
        digits = (whole + levels // 2).astype(jnp.int32)
        indices = jnp.sum(digits * self._along(self._places, digits), axis=-1, keepdims=True)
        nothing = jnp.zeros(z.shape[:1])
        return Quantized(q, indices, variables["state"], nothing, nothing, use_of(histogram(indices, self.codes)))

    def embed(self, variables: Any, indices: Indices) -> Latents:
        digits = indices // self._along(self._places, indices) % self._along(np.asarray(self.levels), indices)
        half = self._along(self.levels, digits) // 2
        return (digits - half) / half

    @property
    def _places(self) -> np.ndarray:
        """Π_{j<i} L_j."""
        return np.cumprod((1, *self.levels[:-1]))

    def _along(self, values: Any, like: Array) -> Array:
        """Of each number, on the last axis of an array."""
        kind = jnp.int32 if isinstance(values, np.ndarray) else jnp.float32
        return jnp.asarray(values, kind).reshape((1,) * (like.ndim - 1) + (-1,))
