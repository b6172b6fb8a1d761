"""The trace of a Jacobian, from its products with a few vectors.

(1)  tr J = Σ_d e_dᵀJe_d                                            exact, D products with the Jacobian
(2)  tr J = E[vᵀJv],  E[vvᵀ] = I                                    Hutchinson; FFJORD 1810.01367 eq. 7
(3)  ‖J‖_F² = Σ_d ‖Je_d‖² = E‖Jv‖² = E‖vᵀJ‖²                        of the same products; RNODE 2002.02798
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@dataclass(frozen=True, kw_only=True)
class Trace(ABC):
    """How the trace of a Jacobian is had: tr J ≈ Σ_k v_kᵀJv_k, with E Σ_k v_k v_kᵀ = I."""

    @abstractmethod
    def vectors(self, key: Key[Array, ""] | None, x: Float[Array, "*s"]) -> Float[Array, "k *s"]:
        """v_1 … v_K of one solve, shaped like x.

        Raises:
          ValueError: there is no key, and the vectors are drawn.
        """


@dataclass(frozen=True, kw_only=True)
class Exact(Trace):
    """Eq. (1): no noise, but D Jacobian products an evaluation, all in memory at once. For a few hundred dimensions."""

    def vectors(self, key: Key[Array, ""] | None, x: Float[Array, "*s"]) -> Float[Array, "k *s"]:
        return jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)


@dataclass(frozen=True, kw_only=True)
class Hutchinson(Trace):
    """Eq. (2), the mean over `probes` draws: unbiased in log p, at one Jacobian product each."""

    noise: Literal["rademacher", "gaussian"] = "rademacher"  # ±1 has the least variance: diagonals come out exact
    probes: int = 1

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"Hutchinson needs at least 1 probe, got probes={self.probes}")

    def vectors(self, key: Key[Array, ""] | None, x: Float[Array, "*s"]) -> Float[Array, "k *s"]:
        if key is None:
            raise ValueError("Hutchinson's trace is drawn at random and needs a key for each example, `keys` [B]")
        draw = jax.random.rademacher if self.noise == "rademacher" else jax.random.normal
        return draw(key, (self.probes, *x.shape), x.dtype) / math.sqrt(self.probes)
