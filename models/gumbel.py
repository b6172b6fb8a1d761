"""Codes that are drawn, with the Gumbel-softmax relaxation for a gradient.

    (1)  y = softmax((l + g)/τ),  g_k = −log(−log u_k),  l the encoder's logits of K codes      1611.01144 eq. 2
    (2)  q = Σ_k y_k·e_k; hard: one-hot(argmax y) is read, with y's gradient                    1611.01144 §2.2
    (3)  τ_n = τ_0·(τ_1/τ_0)^(n/N) at training step n, τ_1 from n = N on
    (4)  KL = Σ over places KL(softmax l ‖ uniform) = Σ over places (log K − H)               2102.12092 §2.1

Where nothing is drawn the likeliest code is taken.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from models.quantize import Indices, Latents, Quantized, Quantizer, histogram, use_of


@dataclass(frozen=True, kw_only=True)
class Gumbel(Quantizer):
    """Eq. (1)–(4)."""

    size: int = 512  # K
    width: int = 64  # D, numbers of a code
    temperature: float = 1.0  # τ_0
    last_temperature: float = 0.0625  # τ_1
    anneal: int = 2000  # N, training steps
    hard: bool = False  # the decoder is never shown a mixture
    beta: float = 1.0  # what (4) counts in the loss

    def __post_init__(self) -> None:
        if self.size < 2 or self.width < 1 or self.anneal < 1 or not 0.0 < self.last_temperature <= self.temperature:
            raise ValueError(
                f"size={self.size} must be 2 or more, width={self.width} and anneal={self.anneal} 1 or more, and "
                f"0 < last_temperature={self.last_temperature} <= temperature={self.temperature}"
            )

    @property
    def inputs(self) -> int:
        return self.size

    @property
    def outputs(self) -> int:
        return self.width

    @property
    def codes(self) -> int:
        return self.size

    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        codebook = jax.random.normal(key, (self.size, self.width))
        return {"params": {"codebook": codebook}, "state": {"step": jnp.zeros((), jnp.int32)}}

    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        codebook, state = variables["params"]["codebook"], variables["state"]
        log_probs = jax.nn.log_softmax(z, axis=-1)
        over = tuple(range(1, z.ndim))
        kl = jnp.sum(jnp.exp(log_probs) * (log_probs + jnp.log(self.size)), axis=over)
        if key is None:
            indices = jnp.argmax(z, axis=-1, keepdims=True).astype(jnp.int32)
            q, metrics = self.embed(variables, indices), {}
        else:
            tau = self.temperature_at(state["step"])
            y = jax.nn.softmax((z + jax.random.gumbel(key, z.shape, z.dtype)) / tau, axis=-1)
            indices = jnp.argmax(y, axis=-1, keepdims=True).astype(jnp.int32)
            if self.hard:
                y = jax.nn.one_hot(indices[..., 0], self.size) + (y - jax.lax.stop_gradient(y))
            q, state, metrics = y @ codebook, {"step": state["step"] + 1}, {"temperature": tau}
        metrics |= use_of(histogram(indices, self.size))
        return Quantized(q, indices, state, jnp.zeros(z.shape[:1]), kl, metrics, self.beta)

    def temperature_at(self, step: Array) -> Array:
        """Eq. (3)."""
        done = jnp.minimum(step / self.anneal, 1.0)
        return self.temperature * (self.last_temperature / self.temperature) ** done

    def embed(self, variables: Any, indices: Indices) -> Latents:
        return variables["params"]["codebook"][indices[..., 0]]
