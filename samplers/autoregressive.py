"""Drawing tokens one after another: prefill of the prompt, then one scan.

    (1)  x_t ~ softmax(z_t/T);  T = 0 takes the likeliest token (greedy)
    (2)  top-k: of the k likeliest tokens alone                                              1805.04833 §5.4
    (3)  top-p: of the likeliest tokens that together have probability p, the last one included   1904.09751 eq. 2, 3

The token at place t of a sample is drawn by fold_in(its key, t). After a stop token that was drawn come stop tokens. A
transformer that is asked for more than its context reads, each time it is full, the later half of what it has drawn
anew, as a prompt.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models.backbone import State
from models.language_model import TokenModel
from models.model import Condition, Model, Variables
from samplers.sampler import Sampler
from samplers.solver import Samples

Tokens = Int[Array, "n _"]
Logits = Float[Array, "n v"]


def filtered(logits: Logits, top_k: int = 0, top_p: float = 1.0) -> Logits:
    """Eq. (2), then (3): −∞ for tokens that are not to be drawn."""
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # of the tokens likelier than each
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def prompt_of(model: TokenModel, condition: Condition, n: int) -> Tokens:
    """The condition's prompt, or none."""
    prompt = (condition or {}).get("prompt")
    prompt = jnp.zeros((n, 0), jnp.int32) if prompt is None else prompt.astype(jnp.int32)
    if model.limit and prompt.shape[1] > model.limit:
        raise ValueError(f"a prompt of {prompt.shape[1]} tokens is longer than the model's context of {model.limit}")
    return prompt


def token_model(model: Model, sampler: Sampler) -> TokenModel:
    if not isinstance(model, TokenModel):
        raise TypeError(f"{type(sampler).__name__} draws tokens from a TokenModel, got {type(model).__name__}")
    return model


@dataclass(frozen=True, kw_only=True)
class Decoding(Sampler):
    """Eq. (1)–(3). The condition may have `prompt` [n, P], which the samples begin with."""

    UNIT: ClassVar[str] = "tokens"

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # of how many tokens is drawn; 0 is all
    top_p: float = 1.0  # the probability that those drawn from have together; 1 is all
    length: int = 0  # tokens of a sample, its prompt's among them; 0: as many as an example of the data has

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0 or self.top_k < 0 or not 0.0 < self.top_p <= 1.0 or self.length < 0:
            raise ValueError(
                f"temperature={self.temperature}, top_k={self.top_k} and length={self.length} must be at least 0, "
                f"top_p={self.top_p} in (0, 1]"
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
        model = token_model(model, self)
        prompt = prompt_of(model, condition, keys.shape[0])
        total = self.length or shape[0]
        given = prompt.shape[1]
        if given >= total:
            raise ValueError(f"a sample of {total} tokens has no room behind a prompt of {given}; ask for a longer one")
        # The last token drawn is not read, so that a context of C tokens gives C + 1 of them.
        room = model.limit + 1 if model.limit else total
        first = min(total, room)
        x, ended = self._draw(model, variables, keys, condition, prompt, first, jnp.zeros(keys.shape, bool))
        if total > first and not model.slides:
            raise ValueError(f"a sample has {room} tokens, the whole of a grid: length={total} is more")
        if total > first:
            kept = (model.limit + 1) // 2
            fresh = room - kept

            def window(carry: tuple[Tokens, Any], start: Int[Array, ""]) -> tuple[Any, Tokens]:
                last, ended = carry
                more, ended = self._draw(model, variables, keys, condition, last, room, ended, start - kept)
                return (more[:, -kept:], ended), more[:, kept:]

            starts = first + fresh * jnp.arange(-(-(total - first) // fresh))
            _, parts = jax.lax.scan(window, (x[:, -kept:], ended), starts)
            x = jnp.concatenate([x, parts.swapaxes(0, 1).reshape(x.shape[0], -1)[:, : total - first]], axis=1)
        return Samples(x, x[None] if trajectory else None, jnp.full(x.shape[:1], total - given))

    def network_calls(self) -> None:
        return None

    def choose(self, logits: Logits, keys: Key[Array, " n"], place: int | Int[Array, ""]) -> Int[Array, " n"]:
        """Eq. (1)–(3): the token at `place` of each sample."""
        if self.temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        own = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        # Probabilities that top-p speaks of are those at the temperature.
        z = filtered(logits / self.temperature, self.top_k, self.top_p)
        return jax.vmap(jax.random.categorical)(own, z).astype(jnp.int32)

    def _draw(
        self,
        model: TokenModel,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        prompt: Tokens,
        total: int,
        ended: Bool[Array, " n"],
        offset: int | Int[Array, ""] = 0,
    ) -> tuple[Tokens, Bool[Array, " n"]]:
        """`total` tokens, the prompt's first, from place `offset` of the sample on; and which samples have ended."""
        given = prompt.shape[1]
        state, logits = model.prefill(variables, prompt, total - 1, condition)

        def chosen(logits: Logits, ended: Any, place: Any) -> tuple[Int[Array, " n"], Any]:
            token = self.choose(logits, keys, offset + place)
            if model.stop is None:
                return token, ended
            token = jnp.where(ended, model.stop, token)
            return token, ended | (token == model.stop)

        def step(carry: tuple[State, Logits, Any], place: Any) -> tuple[Any, Any]:
            state, logits, ended = carry
            token, ended = chosen(logits, ended, place)
            state, logits = model.step(variables, state, token)
            return (state, logits, ended), token

        (_, logits, ended), tokens = jax.lax.scan(step, (state, logits, ended), jnp.arange(given, total - 1))
        last, ended = chosen(logits, ended, total - 1)
        return jnp.concatenate([prompt, tokens.T, last[:, None]], axis=1), ended
