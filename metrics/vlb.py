"""The variational bound of DDPM's ancestral sampler, term by term, on any path and any of its times.

x_0 … x_{N−1} at the noisy knots, noise first; data at the last knot. With (α, σ) at one knot, (α', σ') at the next,
a = α/α' and β = σ² − a²σ'² (the forward step's variance, 1 − α²/α'² on VP):

    (1)  −log P(data) ≤ L_T + Σ L_{t−1} + L_0                                            2006.11239 eq. 5
    (2)  L_T = KL(N(α·x₀, σ²I) ‖ N(0, σ²I)) = α²‖x₀‖²/(2σ²)  at the first knot: sampling starts from N(0, σ²I)
    (3)  L_{t−1} = KL(N(μ(x, x₀), β̃I) ‖ N(μ(x, x̂₀), s²I)),  β̃ = βσ'²/σ²                   eq. 7
              = D/2·(β̃/s² − 1 − log β̃/s²) + (α'β/σ²)²‖x₀ − x̂₀‖²/(2s²)
         s² = β̃  or  s² = β,  the smaller and the larger variance of samplers/ddpm.py
    (4)  L_0 = −Σ_d log ∫ N(v; x̂₀, σ²) dv  over the bin of x₀,d, σ at the last noisy knot; the first and the last bin
         are open-ended                                                                  eq. 13

All in nats; divided by D·log 2 they are bits/dim (iDDPM 2102.09672 §2). In DDPM's discretised terms t − 1 = 0 is data.
One draw of x at each knot and example: each term is unbiased.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Key

from data.dataset import Dataset
from metrics.examples import OverExamples, condition_of, denoiser, is_conditional, mean_and_error, named
from metrics.metric import Evaluation
from models.denoiser import Denoise
from paths.grids import Grid, Knots, Uniform
from samplers.sampler import noise_of_steps
from samplers.transforms import Clip, Network

Variance = Literal["beta_tilde", "beta"]


class Terms(NamedTuple):
    """The bound's parts for each example, in nats."""

    prior: Float[Array, " b"]  # L_T
    steps: Float[Array, "n_minus_1 b"]  # L_{t−1}, noise first
    decoder: Float[Array, " b"]  # L_0

    @property
    def total(self) -> Float[Array, " b"]:
        """The bound (1)."""
        return self.prior + jnp.sum(self.steps, axis=0) + self.decoder


def step_coefficients(knots: Knots, variance: Variance) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Of each step between noisy knots, in float64: KL (3) = D·constant + weight·‖x₀ − x̂₀‖²."""
    alpha, alpha_next = knots.alpha[:-2], knots.alpha[1:-1]
    sigma2, sigma2_next = knots.sigma[:-2] ** 2, knots.sigma[1:-1] ** 2
    beta = sigma2 - (alpha / alpha_next) ** 2 * sigma2_next
    ratio = sigma2_next / sigma2  # β̃/β
    weight = 0.5 * alpha_next**2 * beta / (sigma2 * sigma2_next)  # with s² = β̃
    if variance == "beta_tilde":
        return np.zeros_like(weight), weight
    return 0.5 * (ratio - 1.0 - np.log(ratio)), weight * ratio


def vlb_terms(
    denoise: Denoise,
    knots: Knots,
    x0: Float[Array, "b *s"],
    keys: Key[Array, " b"],
    bin_width: float,
    variance: Variance = "beta_tilde",
) -> Terms:
    """The terms of (1), one network call a step under one `lax.scan`.

    Args:
      denoise: `(x [b, *s], t scalar) → x̂₀`.
      knots: N + 1 times of a path, the last clean data.
      x0: data on a lattice of step `bin_width` that ends at −1 and 1.
      keys: one an example; the noise at knot i comes from fold_in(key, i).
      variance: of the sampler's steps.

    Raises:
      ValueError: the knots do not end at clean data.
    """
    if knots.sigma[-1] != 0:
        raise ValueError(f"the bound needs knots that end at clean data, not at sigma={knots.sigma[-1]:g}")
    axes = tuple(range(1, x0.ndim))
    constant, weight = step_coefficients(knots, variance)
    noise = noise_of_steps(keys, x0)

    def estimate(row: Any, index: Any) -> Float[Array, "b *s"]:
        t, alpha, sigma = row
        return denoise(alpha * x0 + sigma * noise(index)(), t)

    def body(carry: None, row: Any) -> tuple[None, Float[Array, " b"]]:
        knot, index, c, w = row
        return carry, x0[0].size * c + w * jnp.sum((x0 - estimate(knot, index)) ** 2, axis=axes)

    cast = lambda table: jnp.asarray(table, x0.dtype)  # noqa: E731
    noisy = tuple(cast(column[:-1]) for column in (knots.t, knots.alpha, knots.sigma))
    before = jax.tree.map(lambda column: column[:-1], noisy)
    _, steps = jax.lax.scan(body, None, (before, jnp.arange(knots.steps - 1), cast(constant), cast(weight)))
    last = jax.tree.map(lambda column: column[-1], noisy)
    mean = float(knots.alpha[-1]) * estimate(last, knots.steps - 1)
    prior = 0.5 * float(knots.alpha[0] / knots.sigma[0]) ** 2 * jnp.sum(x0**2, axis=axes)
    decoder = -jnp.sum(log_bin_mass(x0, mean, float(knots.sigma[-2]), bin_width), axis=axes)
    return Terms(prior, steps, decoder)


def log_bin_mass(
    x: Float[Array, "*s"], mean: Float[Array, "*s"], std: float | Float[Array, "*s"], bin_width: float
) -> Float[Array, "*s"]:
    """log of the integral in (4), for each value. Finite in float32 however far the mean is from the bin."""
    centre, half = (x - mean) / std, 0.5 * bin_width / std
    lowest, highest = x < -1.0 + 0.5 * bin_width, x > 1.0 - 0.5 * bin_width
    # Φ(b) − Φ(a) is taken in the left tail, where neither is near 1.
    towards = jnp.where(centre > 0, -centre, centre)
    upper, lower = log_ndtr(towards + half), log_ndtr(towards - half)
    inside = upper + jnp.log(-jnp.expm1(lower - upper))
    return jnp.where(lowest, log_ndtr(centre + half), jnp.where(highest, log_ndtr(half - centre), inside))


@dataclass(frozen=True, kw_only=True)
class VLB(OverExamples):
    """DDPM's variational bound in bits/dim, and its parts L_T (prior), L_1 … L_{T−1} (steps) and L_0 (decoder).

    Only for data on a lattice in [−1, 1]. A class-conditional model is given each example's own class where the data
    has one.
    """

    steps: int = 1000  # N, network calls an example
    grid: Grid = field(default_factory=Uniform)
    variance: Variance = "beta_tilde"  # of the sampler's steps: the smaller or the larger one of samplers/ddpm.py
    clip: bool = True  # clip x̂₀ to [−1, 1], as DDPM's public code does

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"the bound needs at least 1 step, got steps={self.steps}")

    def check(self, data: Dataset) -> None:
        if data.bin_width is None:
            raise ValueError(
                f"the variational bound in bits/dim is of discrete data, and {type(data).__name__} is continuous: it "
                "has no bins for the decoder (measure the likelihood instead)"
            )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = denoiser(evaluation.model, "the variational bound")
        self.check(evaluation.data)
        width = evaluation.data.bin_width
        assert width is not None
        knots = self.grid.knots(model.path, self.steps, model.t_max)

        def parts(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            condition, x0 = condition_of(model, batch), batch["x"]
            network = Network(model=model, variables=variables, condition=condition)
            denoise = Clip()(network, network) if self.clip else network
            terms = vlb_terms(denoise, knots, x0, keys, width, self.variance)
            return terms.prior, jnp.sum(terms.steps, axis=0), terms.decoder

        arrays = evaluation.data.arrays(self.split, self.examples)
        found = self.over(parts, evaluation, arrays)
        bits = [np.asarray(part, np.float64) / (arrays["x"][0].size * math.log(2.0)) for part in found]
        if not all(np.isfinite(part).all() for part in bits):
            raise ValueError("the variational bound is not finite: the network said something that is not a number")
        numbers = mean_and_error("vlb_bits_per_dim", np.sum(bits, axis=0))
        for name, part in zip(("prior", "steps", "decoder"), bits, strict=True):
            numbers[f"vlb_{name}"] = float(part.mean())
        numbers["vlb_nfe"] = float(self.steps)
        return named(numbers, self.split, is_conditional(model, arrays))
