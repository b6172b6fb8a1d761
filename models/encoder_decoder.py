"""The transformer of 1706.03762: an encoder of one sequence, and a decoder of another that attends to it.

    (1)  m_1 … m_S = encoder(E[source]),  every place sees every other up to the source's length
    (2)  log P(x_1 … x_T | source) = Σ_t log P(x_t | x_<t, m),  the decoder's layers attend to m between (1) and (2) of
         models/transformer.py
    (3)  one table E for the source, the target and, transposed, the logits                  1706.03762 §3.4

A batch has `source` [B, S], `source_length` [B] and the target `x` [B, T]; a condition the first two.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.backbone import State
from models.language_model import Embedding, Logits, Reading, Started, TokenModel, Tokens
from models.model import Batch, Condition, Variables
from models.transformer import Transformer

Memory = Float[Array, "b s f"]


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(TokenModel):
    """Eq. (1)–(3). Targets are modelled from their first token."""

    encoder: Transformer = field(default_factory=lambda: Transformer(bidirectional=True))
    decoder: Transformer = field(default_factory=lambda: Transformer(cross=True))
    scaled: bool = True  # embeddings times √width

    def __post_init__(self) -> None:
        if not self.encoder.bidirectional or self.decoder.bidirectional or not self.decoder.cross or self.encoder.cross:
            raise ValueError("the encoder must be bidirectional and without cross; the decoder causal and with cross")
        if self.encoder.width != self.decoder.width:
            raise ValueError(
                f"encoder and decoder share a table, so that both must be of one width: "
                f"{self.encoder.width} and {self.decoder.width}"
            )

    @property
    def limit(self) -> int:
        return self.decoder.context and self.decoder.context - 1

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        if "source" not in batch:
            raise ValueError("an encoder and decoder learn from pairs, and this data has no source")
        keys = jax.random.split(key, 3)
        params: dict[str, Any] = {"embedding": self._embedding.init(keys[0], batch["source"])["params"]}
        embed = lambda tokens: self._embedding.apply({"params": params["embedding"]}, tokens)  # noqa: E731
        source = embed(batch["source"])
        params["encoder"] = self.encoder.init(keys[1], source)["params"]
        params["decoder"] = self.decoder.init(keys[2], embed(self._shifted(batch["x"])), memory=source)["params"]
        return {"params": params, "state": {}}

    def read(self, variables: Variables, batch: Batch, key: Key[Array, ""] | None = None) -> Reading:
        own, other = (None, None) if key is None else jax.random.split(key)
        memory = self.encode(variables, batch, own)
        h = self._decode(variables, self._shifted(batch["x"]), memory, batch, other)
        weight = batch.get("weight", jnp.ones(batch["x"].shape, jnp.float32))
        return Reading(h, batch["x"], weight, variables["state"])

    def logits(self, variables: Variables, h: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        return self._embedding.apply({"params": variables["params"]["embedding"]}, h, method="logits")  # type: ignore[return-value]

    def apply(self, variables: Variables, tokens: Tokens, condition: Condition = None) -> Logits:
        told = self._told(condition)
        h = self._decode(variables, self._started(tokens), self.encode(variables, told), told)
        return self.logits(variables, h)

    def embed(self, variables: Variables, x: Tokens) -> Float[Array, "b _ f"]:
        """What the decoder reads to predict x."""
        return self._embedding.apply({"params": variables["params"]["embedding"]}, self._shifted(x))  # type: ignore[return-value]

    def encode(self, variables: Variables, told: Batch, key: Key[Array, ""] | None = None) -> Memory:
        """Eq. (1)."""
        params = variables["params"]
        h = self._embedding.apply({"params": params["embedding"]}, told["source"])
        rngs = None if key is None else {"dropout": key}
        lengths = told.get("source_length")
        m, _ = self.encoder.apply({"params": params["encoder"]}, h, None, lengths, key is not None, rngs=rngs)  # type: ignore[misc]
        return m

    def prefill(
        self, variables: Variables, tokens: Tokens, length: int, condition: Condition = None
    ) -> tuple[State, Float[Array, "b v"]]:
        told = self._told(condition)
        state = self.decoder.empty(tokens.shape[0], length + 1)
        memory, lengths = self.encode(variables, told), told.get("source_length")
        decoder = {"params": variables["params"]["decoder"]}
        state = self.decoder.apply(decoder, state, memory, lengths, method="remember")
        return self._next(variables, self._started(tokens), state)

    def step(self, variables: Variables, state: State, token: Int[Array, " b"]) -> tuple[State, Float[Array, "b v"]]:
        return self._next(variables, token[:, None], state)

    def _next(self, variables: Variables, tokens: Tokens, state: State) -> tuple[State, Float[Array, "b v"]]:
        params = variables["params"]
        h: Any = self._embedding.apply({"params": params["embedding"]}, tokens)
        h, state = self.decoder.apply({"params": params["decoder"]}, h, state)  # type: ignore[misc]
        return state, self.logits(variables, h[:, -1])

    def _decode(
        self, variables: Variables, tokens: Tokens, memory: Memory, told: Batch, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b t f"]:
        params = variables["params"]
        h = self._embedding.apply({"params": params["embedding"]}, tokens)
        rngs = None if key is None else {"dropout": key}
        arguments = (h, None, None, key is not None, memory, told.get("source_length"))
        return self.decoder.apply({"params": params["decoder"]}, *arguments, rngs=rngs)[0]  # type: ignore[index]

    @property
    def _embedding(self) -> Embedding:
        return Embedding(self.tokens, self.decoder.width, 1, True, self.scaled, self.decoder.dtype)

    def _told(self, condition: Condition) -> Batch:
        if not condition or "source" not in condition:
            raise ValueError("an encoder and decoder need a source to read: give `source` in the condition")
        return condition

    def _started(self, tokens: Tokens) -> Started:
        return jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=self.tokens)

    def _shifted(self, x: Tokens) -> Started:
        return self._started(x[:, :-1])
