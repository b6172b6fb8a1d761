"""Functions from a denoiser to a denoiser: what stands between the network and the solver."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp

from models.denoiser import Denoise


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """Base of all transformations `Denoise → Denoise`."""

    @property
    def calls(self) -> int:
        """Network calls that one call of the result costs; a batch that is doubled counts as two."""
        return 1

    @abstractmethod
    def __call__(self, denoise: Denoise) -> Denoise: ...


@dataclass(frozen=True, kw_only=True)
class Clip(Transform):
    """Clips x̂₀ to the range of the data, as DDPM's and DDIM's public codes do."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, denoise: Denoise) -> Denoise:
        return lambda x, t: jnp.clip(denoise(x, t), self.low, self.high)
