"""Weights of the denoising loss, all stated in one space: w multiplies ‖F − y‖², the error in the face's own output.

An x₀-space weight W becomes w = W·c_out², since x̂₀ − x₀ = c_out·(F − y); an ε-space weight becomes W·c_out²·α²/σ².

    uniform      w = 1                                        L_simple for eps      2006.11239 eq. 14
    min_snr      W(x₀) = min(SNR, γ)                          for eps: min(SNR, γ)/SNR   2303.09556 eq. 5
    p2           W(ε) = 1/(k + SNR)^γ                                               2204.00227 eq. 8
    sigmoid      W(ε) = −λ̇/2 · sigmoid(b − λ)                                       2303.00848 eq. 9; 2410.19324 §3
    edm          W(x₀) = (σ² + σ_d²)/(σ·σ_d)²  at σ/α         1 for the edm face    2206.00364 table 1
    likelihood   W(score) = g²/2                              mean over t ~ U(0,1) bounds the NLL's t-integral
                                                                                    2101.09258 eq. 7
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.denoiser import Denoiser

Times = Float[Array, " b"]
Weights = Float[Array, " b"]


@dataclass(frozen=True, kw_only=True)
class Weighting(ABC):
    """Base of all weightings: w(t) ≥ 0, one an example."""

    @abstractmethod
    def __call__(self, model: Denoiser, t: Times) -> Weights: ...


def _from_x0(model: Denoiser, t: Times, weight: Weights) -> Weights:
    return weight * model.face(t).c_out ** 2


def _from_eps(model: Denoiser, t: Times, weight: Weights) -> Weights:
    snr = jnp.exp(model.path.log_snr(t))
    # Where α = 0 a weight may be ∞; its share in x₀-space there is nothing.
    return _from_x0(model, t, jnp.where(snr > 0, weight * snr, 0.0))


@dataclass(frozen=True, kw_only=True)
class Uniform(Weighting):
    """1: L_simple for the eps face, the flow-matching loss for the velocity face."""

    def __call__(self, model: Denoiser, t: Times) -> Weights:
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """Min-SNR-γ."""

    gamma: float = 5.0

    def __call__(self, model: Denoiser, t: Times) -> Weights:
        return _from_x0(model, t, jnp.minimum(jnp.exp(model.path.log_snr(t)), self.gamma))


@dataclass(frozen=True, kw_only=True)
class P2(Weighting):
    """Perception-prioritised weighting."""

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, model: Denoiser, t: Times) -> Weights:
        return _from_eps(model, t, (self.k + jnp.exp(model.path.log_snr(t))) ** -self.gamma)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Weighting):
    """Sigmoid weighting of the evidence bound, in nats a dimension when b is large."""

    bias: float = 2.0  # b: noise levels cleaner than λ = b count less

    def __call__(self, model: Denoiser, t: Times) -> Weights:
        log_snr, slope = jax.jvp(model.path.log_snr, (t,), (jnp.ones_like(t),))
        return _from_eps(model, t, -0.5 * slope * jax.nn.sigmoid(self.bias - log_snr))


@dataclass(frozen=True, kw_only=True)
class EDM(Weighting):
    """EDM's λ(σ), with the model's own σ_data."""

    def __call__(self, model: Denoiser, t: Times) -> Weights:
        # (σ² + σ_d²)/(σσ_d)² = 1/σ_d² + 1/σ², and 1/σ² at σ/α is the SNR
        return _from_x0(model, t, model.sigma_data**-2 + jnp.exp(model.path.log_snr(t)))


@dataclass(frozen=True, kw_only=True)
class Likelihood(Weighting):
    """g²/2 on the score: likelihood weighting, in nats a dimension."""

    def __call__(self, model: Denoiser, t: Times) -> Weights:
        g2, sigma = model.path.diffusion_squared(t), model.path.sigma(t)
        return _from_eps(model, t, 0.5 * g2 / sigma**2)
