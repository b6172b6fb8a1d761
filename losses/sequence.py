"""Cross-entropy of the next token.

    (1)  ℓ_t = −log softmax(z_t)[x_t],  z_t = h_t·W                                nats
    (2)  with label smoothing ε: (1 − ε)·ℓ_t − ε·mean_v log softmax(z_t)[v]         1706.03762 §5.4; 1512.00567 §7
    (3)  L = Σ w_t·ℓ_t/Σ w_t over a batch, w its weights: 0 where there is padding (over a part of it, where gradients
         are accumulated)

The logits of a long sequence over a large vocabulary are the largest array of a language model. They are made, used and
forgotten in runs of a few places, and made again for the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.loss import Loss, Objective
from models.language_model import TokenModel
from models.model import Batch, Model, Variables

HELD = 2**24  # logits that are held at once, unless it is said

Hidden = Float[Array, "b t f"]
PerToken = Float[Array, "b t"]


def token_cross_entropy(
    logits: Callable[[Hidden], Float[Array, "b t v"]],
    h: Hidden,
    targets: Int[Array, "b t"],
    smoothing: float = 0.0,
    places: int = 0,
) -> tuple[PerToken, PerToken]:
    """Eq. (1), and eq. (2), which is the same where nothing is smoothed.

    Args:
      logits: from h to z; may hold parameters, which the gradient reaches.
      places: of each sequence, whose logits are held at once; 0 holds all.
    """

    def some(h: Hidden, targets: Int[Array, "b t"]) -> tuple[PerToken, PerToken]:
        z = logits(h)
        total = jax.nn.logsumexp(z, axis=-1)
        nats = total - jnp.take_along_axis(z, targets[:, :, None], axis=2)[:, :, 0]
        return nats, (1.0 - smoothing) * nats + smoothing * (total - jnp.mean(z, axis=-1)) if smoothing else nats

    size, steps = targets.shape
    if not places or places >= steps:
        return some(h, targets)
    turns = -(-steps // places)  # two or more, of equal length
    length = -(-steps // turns)
    padded = lambda y: jnp.pad(y, ((0, 0), (0, turns * length - steps), *[(0, 0)] * (y.ndim - 2)))  # noqa: E731
    split = lambda y: padded(y).reshape(size, turns, length, *y.shape[2:]).swapaxes(0, 1)  # noqa: E731
    forgotten = jax.checkpoint(some, prevent_cse=False)
    _, parts = jax.lax.scan(lambda _, part: (None, forgotten(*part)), None, (split(h), split(targets)))
    nats, smoothed = (part.swapaxes(0, 1).reshape(size, -1)[:, :steps] for part in parts)
    return nats, smoothed


def log_probs(model: TokenModel, variables: Variables, batch: Batch) -> tuple[PerToken, PerToken]:
    """log P(x_t | x_<t) of every token, in nats, 0 of those that do not count; and how much each counts. No dropout."""
    seen = model.read(variables, batch)
    logits = lambda h: model.logits(variables, h)  # noqa: E731
    nats, _ = token_cross_entropy(logits, seen.h, seen.targets, places=places_held(model, seen.targets.shape[0]))
    return -seen.weight * nats, seen.weight


def places_held(model: TokenModel, size: int) -> int:
    """How many places of `size` sequences make 2²⁴ logits."""
    return max(1, HELD // (size * model.tokens))


@dataclass(frozen=True, kw_only=True)
class NextToken(Loss):
    """Eq. (3). Logs nats and bits a token without smoothing."""

    smoothing: float = 0.0  # ε
    places: int = 0  # of each sequence, whose logits are held at once; 0: as many as make 2²⁴ logits

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0 or self.places < 0:
            raise ValueError(f"smoothing={self.smoothing} must be in [0, 1), places={self.places} at least 0")

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, TokenModel):
            raise TypeError(f"the next token is predicted by a TokenModel, got {type(model).__name__}")
        seen = model.read(variables, batch, key)
        size = seen.targets.shape[0]
        places = self.places or places_held(model, size)
        nats, smoothed = token_cross_entropy(
            lambda h: model.logits(variables, h), seen.h, seen.targets, self.smoothing, places
        )
        # One value an example, whose mean is (3): a token counts the same in a short sequence and in a long one.
        share = seen.weight * size / jnp.maximum(jnp.sum(seen.weight), 1e-9)
        over = lambda values: jnp.sum(share * values, axis=1)  # noqa: E731
        metrics = {"nats_per_token": over(nats), "bits_per_token": over(nats) / jnp.log(2.0)}
        return Objective(over(smoothed), metrics, seen.state)
