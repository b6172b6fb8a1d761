"""What stands in a quantizer's place where there are no codes: nothing, and a normal.

plain     q = z                                                            an autoencoder
normal    q = μ + σ·ε,  (μ, log σ) = z,  KL(N(μ, σ²) ‖ N(0, 1)) = ½·Σ (μ² + σ² − 1 − 2·log σ)
                                                                           a VAE, 1312.6114 app. B
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.quantize import Bottleneck, Latents, Quantized


@dataclass(frozen=True, kw_only=True)
class _Continuous(Bottleneck):
    """Base of the two."""

    width: int = 64  # numbers a place

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"a bottleneck of width={self.width} lets nothing through")

    @property
    def inputs(self) -> int:
        return self.width

    @property
    def outputs(self) -> int:
        return self.width

    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        return {"params": {}, "state": {}}


@dataclass(frozen=True, kw_only=True)
class Plain(_Continuous):
    """Lets everything through."""

    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        nothing = jnp.zeros(z.shape[:1])
        return Quantized(z, None, variables["state"], nothing, nothing, {})


@dataclass(frozen=True, kw_only=True)
class NormalPosterior(_Continuous):
    """The posterior's draw while training, its mean otherwise."""

    beta: float = 1.0  # what the KL divergence counts in the loss, of a β-VAE

    @property
    def inputs(self) -> int:
        return 2 * self.width

    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        mean, log_std = jnp.split(z, 2, axis=-1)
        each = 0.5 * (mean**2 + jnp.exp(2.0 * log_std) - 1.0 - 2.0 * log_std)
        kl = jnp.sum(each, axis=tuple(range(1, z.ndim)))
        q = mean if key is None else mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        return Quantized(q, None, variables["state"], jnp.zeros_like(kl), kl, {"kl": kl}, self.beta)

    def latent(self, z: Latents) -> Float[Array, "b *s d"]:
        """The mean."""
        return jnp.split(z, 2, axis=-1)[0]

    def read(self, variables: Any, latent: Latents) -> Latents:
        return latent
