"""Beam search: the K likeliest continuations known, one token after another.

    (1)  score(y) = log P(y | x)/((5 + |y|)/6)^α                    Wu et al. 1609.08144 eq. 14; |y| with the stop token
    (2)  of all continuations of K unfinished sequences by one token, the K likeliest unfinished ones go on, and the K
         best by (1) of the finished ones so far are kept

With K at least the number of all prefixes this is the exact maximum of (1).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.backbone import rearranged
from models.model import Condition, Model, Variables
from samplers.autoregressive import prompt_of, token_model
from samplers.sampler import Sampler
from samplers.solver import Samples

IMPOSSIBLE = -1e30  # of a beam that holds nothing: finite, so that differences are numbers


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Sampler):
    """Eq. (1), (2). The condition may have `prompt` [n, P]; keys are not used."""

    UNIT: ClassVar[str] = "tokens"

    beams: int = 4  # K
    length_penalty: float = 0.6  # α
    length: int = 0  # most tokens of a sample, its prompt's among them; 0: as many as an example of the data has

    def __post_init__(self) -> None:
        if self.beams < 1 or self.length < 0:
            raise ValueError(f"beams={self.beams} must be at least 1, length={self.length} at least 0")

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        found, _ = self.search(model, variables, keys.shape[0], condition, shape)
        x, given = found[:, 0], prompt_of(token_model(model, self), condition, keys.shape[0]).shape[1]
        return Samples(x, x[None] if trajectory else None, jnp.full(keys.shape, x.shape[1] - given))

    def network_calls(self) -> None:
        return None

    def search(
        self, model: Model, variables: Variables, n: int, condition: Condition, shape: tuple[int, ...]
    ) -> tuple[Int[Array, "n k t"], Float[Array, "n k"]]:
        """The K best sequences and their scores (1), best first.

        Raises:
          ValueError: no room behind the prompt, or more than the model's context holds.
        """
        model, k = token_model(model, self), self.beams
        prompt = prompt_of(model, condition, n)
        given, total = prompt.shape[1], self.length or shape[0]
        if given >= total or (model.limit and total > model.limit + 1):
            allowed = f", at most {model.limit + 1}" if model.limit else ""
            raise ValueError(f"a search for {total} tokens must have more than the prompt's {given}{allowed}")
        penalty = lambda count: ((5.0 + count) / 6.0) ** self.length_penalty  # noqa: E731
        state, logits = model.prefill(variables, prompt, total - 1, condition)
        state = rearranged(state, jnp.repeat(jnp.arange(n), k))
        x = jnp.zeros((n, k, total), jnp.int32).at[:, :, :given].set(prompt[:, None, :])
        # All beams begin alike: all but the first are empty.
        alive = jnp.full((n, k), IMPOSSIBLE).at[:, 0].set(0.0)
        done, done_scores = x, jnp.full((n, k), IMPOSSIBLE)
        vocabulary = logits.shape[-1]
        rows = jnp.arange(n)[:, None]

        def grow(carry: Any, place: Any) -> tuple[Any, Any]:
            """The best 2K continuations: of K beams at most K can have stopped."""
            x, alive, done, done_scores, logits = carry
            gains = jax.nn.log_softmax(logits).reshape(n, k, vocabulary)
            both = (alive[:, :, None] + gains).reshape(n, -1)
            scores, where = jax.lax.top_k(both, min(2 * k, both.shape[1]))
            parents, tokens = where // vocabulary, (where % vocabulary).astype(jnp.int32)
            grown = jax.lax.dynamic_update_index_in_dim(x[rows, parents], tokens, place, 2)
            stopped = tokens == model.stop if model.stop is not None else jnp.zeros(tokens.shape, bool)
            # What comes behind a stop token is stop tokens.
            padded = jnp.where(jnp.arange(total)[None, None, :] > place, 0 if model.stop is None else model.stop, grown)
            final = jnp.where(stopped, scores / penalty(place - given + 1.0), IMPOSSIBLE)
            done_scores, best = jax.lax.top_k(jnp.concatenate([done_scores, final], axis=1), k)
            done = jnp.concatenate([done, padded], axis=1)[rows, best]
            alive, best = jax.lax.top_k(jnp.where(stopped, IMPOSSIBLE, scores), k)
            chosen = jnp.take_along_axis(parents, best, axis=1)
            return (grown[rows, best], alive, done, done_scores), chosen

        def step(carry: Any, place: Any) -> tuple[Any, None]:
            state, logits, *beams = carry
            (x, *others), parents = grow((*beams, logits), place)
            state = rearranged(state, (parents + k * rows).reshape(-1))
            token = jax.lax.dynamic_index_in_dim(x, place, 2, keepdims=False).reshape(-1)
            state, logits = model.step(variables, state, token)
            return (state, logits, x, *others), None

        carry = (state, jnp.repeat(logits, k, axis=0), x, alive, done, done_scores)
        carry, _ = jax.lax.scan(step, carry, jnp.arange(given, total - 1))
        (x, alive, done, done_scores), _ = grow((*carry[2:], carry[1]), total - 1)
        # A sequence that fills all places has ended too.
        scores = jnp.concatenate([done_scores, alive / penalty(float(total - given))], axis=1)
        scores, best = jax.lax.top_k(scores, k)
        return jnp.concatenate([done, x], axis=1)[rows, best], scores
