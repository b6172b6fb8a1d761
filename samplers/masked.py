"""Drawing all tokens at once, keeping those that the model is surest of, and drawing the others again.

    (1)  z = model(x, masked); with guidance z = z_∅ + g·(z_c − z_∅)                         2207.12598
    (2)  x_k ~ softmax(z_k/ϑ) for every masked k;  ϑ = 0 takes the likeliest
    (3)  confidence_k = log softmax(z_k)[x_k] + τ·(1 − (i + 1)/S)·G_k,  G ~ Gumbel, in step i = 0 … S − 1
    (4)  the n_i least confident of them stay masked, n_i = ⌊T·cos(π(i + 1)/2S)⌋ or ⌊T·(1 − (i + 1)/S)⌋; the others are
         fixed for good, one or more in every step                                           2202.04200 §3.2, §3.3

The noise of step i of a sample is that of fold_in(its key, i).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models.masked import MaskedModel, lowest
from models.model import NULL_LABEL, Condition, Model, Variables
from samplers.sampler import Sampler
from samplers.solver import Samples

Tokens = Int[Array, "n t"]
Logits = Float[Array, "n t v"]


@dataclass(frozen=True, kw_only=True)
class MaskedDecoding(Sampler):
    """Eq. (1)–(4)."""

    steps: int = 8  # S, at most as many as tokens
    temperature: float = 1.0  # ϑ, of the tokens; 0 is greedy
    choice_temperature: float = 4.5  # τ: of which are kept; 0 keeps the likeliest
    schedule: Literal["cosine", "linear"] = "cosine"  # of how many stay masked
    guidance: float = 1.0  # g; 1 is no guidance, 0 no class

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.temperature >= 0.0 or not self.choice_temperature >= 0.0:
            raise ValueError(
                f"steps={self.steps} must be at least 1, temperature={self.temperature} and "
                f"choice_temperature={self.choice_temperature} at least 0"
            )

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        if not isinstance(model, MaskedModel):
            raise TypeError(f"{type(self).__name__} draws tokens from a MaskedModel, got {type(model).__name__}")
        if self.guidance != 1.0 and (not model.num_classes or "label" not in (condition or {})):
            raise ValueError(f"guidance={self.guidance} needs a class-conditional model and condition['label']")

        def step(carry: tuple[Tokens, Bool[Array, "n t"]], now: Any) -> tuple[Any, Tokens | None]:
            x, masked = carry
            i, left = now
            own = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i)))(keys)
            z = self._logits(model, variables, x, masked, condition)
            x = jnp.where(masked, self._chosen(z, own[:, 0]), x)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(z, axis=-1), x[:, :, None], axis=2)[:, :, 0]
            gumbel = jax.vmap(lambda key: jax.random.gumbel(key, x.shape[1:]))(own[:, 1])
            confidence = log_p + self.choice_temperature * (1.0 - (i + 1) / self.steps) * gumbel
            confidence = jnp.where(masked, confidence, jnp.inf)
            return (x, lowest(confidence, jnp.full(keys.shape, left))), x if trajectory else None

        start = jnp.zeros((keys.shape[0], *shape), jnp.int32)
        rows = (jnp.arange(self.steps), jnp.asarray(self.masked_after(shape[0]), jnp.int32))
        (x, _), states = jax.lax.scan(step, (start, jnp.ones(start.shape, bool)), rows)
        return Samples(x, states)

    def network_calls(self) -> int:
        return self.steps if self.guidance == 1.0 else 2 * self.steps

    def masked_after(self, length: int) -> list[int]:
        """n_i of eq. (4) for each step.

        Raises:
          ValueError: there are more steps than tokens.
        """
        if self.steps > length:
            raise ValueError(
                f"steps={self.steps} is more than the {length} tokens of a sample: one or more are fixed in each"
            )
        left, counts = length, []
        for i in range(1, self.steps + 1):
            if self.schedule == "linear":
                wanted = length * (self.steps - i) // self.steps
            else:
                wanted = math.floor(length * math.cos(math.pi * i / (2 * self.steps)) + 1e-9)  # of rounding
            # Both schedules lie on or above the line that fixes one token a step, so that this never reaches 0 early.
            left = min(wanted, left - 1)
            counts.append(left)
        return counts

    def _logits(
        self, model: MaskedModel, variables: Variables, x: Tokens, masked: Bool[Array, "n t"], condition: Condition
    ) -> Logits:
        """Eq. (1)."""
        if self.guidance == 1.0:
            return model.logits(variables, x, masked, condition)
        # Each sample stands beside its double, so that a batch split over devices stays where it is.
        doubled = {name: jnp.repeat(value, 2, axis=0) for name, value in (condition or {}).items()}
        doubled["label"] = doubled["label"].at[1::2].set(NULL_LABEL)
        both = model.logits(variables, jnp.repeat(x, 2, axis=0), jnp.repeat(masked, 2, axis=0), doubled)
        with_class, without = both[0::2], both[1::2]
        return without + self.guidance * (with_class - without)

    def _chosen(self, z: Logits, keys: Key[Array, " n"]) -> Tokens:
        """Eq. (2)."""
        if self.temperature == 0.0:
            return jnp.argmax(z, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, z / self.temperature).astype(jnp.int32)
