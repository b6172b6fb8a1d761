"""Cross-entropy of masked tokens, and what it says of the likelihood.

    (1)  MaskGIT masks m = ⌈T·cos(πu/2)⌉ tokens at random places, u ~ U(0, 1)                2202.04200 §3.1, §3.3
    (2)  L = Σ_masked ℓ_k/Σ_masked 1 over a batch,  ℓ_k = −log P(x_k | x_shown), smoothed as losses/sequence.py eq. (2)
                                                                                             2202.04200 eq. 1
    (3)  −log P(x) ≤ E_σ Σ_i −log P(x_σ(i) | x_σ(<i)) = E_{m~U{1…T}} E_mask (T/m)·Σ_masked ℓ_k,  P(x) the mean over all
         orders σ of the products                                                            2110.02037 §2–3
    (4)  L = Σ_masked ℓ_k/m, m ~ U{1…T}: (3) over T, in nats a token

(2) counts every masked token the same, so that examples of which much is masked count more. The uniforms of a batch are
u_i = (u₀ + i/B) mod 1 (losses/times.py, low_discrepancy), those of the draws of (3) for one example likewise: with as
many draws as tokens, or a multiple, every m comes equally often.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.loss import Loss, Objective, check_dropout, class_condition, every_class
from losses.sequence import token_cross_entropy
from models.masked import Masked, MaskedModel, lowest
from models.model import Batch, Condition, Model, Variables

Weighting = Literal["maskgit", "likelihood"]


def mask_counts(u: Float[Array, " b"], length: int, weighting: Weighting) -> Int[Array, " b"]:
    """m of eq. (1) or (3), from uniforms in [0, 1)."""
    m = jnp.ceil(length * jnp.cos(jnp.pi / 2 * u)) if weighting == "maskgit" else 1 + jnp.floor(length * u)
    return jnp.clip(m, 1, length).astype(jnp.int32)  # rounding may leave it by one


def masked_nats(
    model: MaskedModel,
    variables: Variables,
    tokens: Int[Array, "b t"],
    masked: Masked,
    condition: Condition = None,
    key: Key[Array, ""] | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """ℓ of every token, without smoothing and with it; 0 where it is shown."""
    z = model.logits(variables, tokens, masked, condition, key)
    nats, smoothed = token_cross_entropy(lambda z: z, z, tokens, smoothing)
    return masked * nats, masked * smoothed


def bound_of_mask(nats: Float[Array, "b t"], masked: Masked) -> Float[Array, " b"]:
    """What one mask says of the right side of eq. (3), in nats an example; `nats` as `masked_nats` has them."""
    return masked.shape[1] * jnp.sum(nats, axis=1) / jnp.sum(masked, axis=1)


def log_prob_bounds(
    model: MaskedModel, variables: Variables, batch: Batch, keys: Key[Array, " b"], draws: int
) -> Float[Array, " b"]:
    """Estimates of the lower bound (3) of log P of each example, in nats: unbiased, each from its own key. No dropout.

    Args:
      draws: masks an example.
    """
    x = batch["x"]
    length = x.shape[1]
    first = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, draws)))(keys)

    def draw(total: Float[Array, " b"], j: Int[Array, ""]) -> tuple[Float[Array, " b"], None]:
        own = jax.vmap(lambda key: jax.random.fold_in(key, j))(keys)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(own)
        masked = lowest(noise, mask_counts((first + j) / draws, length, "likelihood"))
        nats, _ = masked_nats(model, variables, x, masked, every_class(batch))
        return total - bound_of_mask(nats, masked), None

    total, _ = jax.lax.scan(draw, jnp.zeros(x.shape[:1]), jnp.arange(draws))
    return total / draws


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(Loss):
    """Eq. (2) or (4). Logs nats a masked token without smoothing; of the likelihood they are a bound, also in bits."""

    weighting: Weighting = "maskgit"  # how many tokens are masked, and what each counts
    smoothing: float = 0.0  # ε; 0.1 in 2202.04200
    label_dropout: float = 0.0  # how often the class is left out, for guidance

    def __post_init__(self) -> None:
        check_dropout(self.label_dropout)
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(
                f"smoothing={self.smoothing} must be in [0, 1), label_dropout={self.label_dropout} in [0, 1]"
            )

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, MaskedModel):
            raise TypeError(f"masked tokens are predicted by a MaskedModel, got {type(model).__name__}")
        count_key, place_key, label_key, dropout_key = jax.random.split(key, 4)
        x = batch["x"]
        size, length = x.shape
        u = (jax.random.uniform(count_key) + jnp.arange(size) / size) % 1.0
        counts = mask_counts(u, length, self.weighting)
        masked = lowest(jax.random.uniform(place_key, x.shape), counts)
        condition = class_condition(label_key, batch, self.label_dropout)
        nats, smoothed = masked_nats(model, variables, x, masked, condition, dropout_key, self.smoothing)
        # One value an example, whose mean is (2) or (4).
        over = counts if self.weighting == "likelihood" else jnp.full(counts.shape, jnp.mean(counts))
        value = lambda of: jnp.sum(of, axis=1) / over  # noqa: E731
        metrics = {"nats_per_token": value(nats)}
        if self.weighting == "likelihood":
            metrics["bits_per_token_bound"] = value(nats) / jnp.log(2.0)
        return Objective(value(smoothed), metrics, variables["state"])
