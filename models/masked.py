"""Tokens that are masked, each from all that are shown: of any subset at once, on a network in both directions.

    (1)  P(x_k | x_shown) = softmax(h_k·Eᵀ) for every masked k,  h = f(e_1 … e_T)            2202.04200 §3.1
    (2)  e_k = E[x_k] where it is shown, E[mask] where it is masked; the mask is the row behind the vocabulary's
    (3)  of a model that is conditioned on classes, a token of the class stands in front, e_0 = E[class], and what comes
         out in its place is dropped: the backbone reads T + 1 places

A class in front, rather than a vector that is added, is for attention to look up where it is of use, and makes one
table of everything that is read.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models.backbone import Backbone
from models.language_model import Embedding, OverTokens, Started, Tokens
from models.model import Batch, Condition, Variables, class_rows, label_of
from models.transformer import Transformer

Masked = Bool[Array, "b t"]


def lowest(values: Float[Array, "b t"], counts: Int[Array, " b"]) -> Masked:
    """Which are the `counts` lowest of each row: exactly as many, for of equal ones the first come first."""
    ranks = jnp.argsort(jnp.argsort(values, axis=1), axis=1)
    return ranks < counts[:, None]


@dataclass(frozen=True, kw_only=True)
class MaskedModel(OverTokens):
    """Eq. (1)–(3)."""

    backbone: Backbone = field(default_factory=lambda: Transformer(bidirectional=True))
    num_classes: int = 0  # classes to condition on; 0 is unconditional

    def __post_init__(self) -> None:
        if self.backbone.causal:
            raise ValueError("what is masked is told by what stands on both sides: the backbone must be bidirectional")

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        if "weight" in batch:
            raise ValueError("a masked model is of sequences of one length, and this data's have weights, or padding")
        embed_key, key = jax.random.split(key)
        read = self._read(batch["x"], batch)
        params: dict[str, Any] = {"embedding": self._embedding.init(embed_key, read)["params"]}
        h = self._embedding.apply({"params": params["embedding"]}, read)
        params["backbone"] = self.backbone.init(key, h)["params"]
        return {"params": params, "state": {}}

    def logits(
        self,
        variables: Variables,
        tokens: Tokens,
        masked: Masked,
        condition: Condition = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b t v"]:
        """Of every place, in float32; those of a place that is shown mean nothing. With a key, dropout.

        Args:
          tokens: what stands under the mask changes nothing.
        """
        params = variables["params"]
        read = self._read(jnp.where(masked, self.tokens, tokens), condition)
        h = self._embedding.apply({"params": params["embedding"]}, read)
        rngs = None if key is None else {"dropout": key}
        h, _ = self.backbone.apply({"params": params["backbone"]}, h, train=key is not None, rngs=rngs)  # type: ignore[misc]
        h = h[:, 1:] if self.num_classes else h
        return self._embedding.apply({"params": params["embedding"]}, h, method="logits")  # type: ignore[return-value]

    @property
    def _embedding(self) -> Embedding:
        behind = 1 + (self.num_classes + 1 if self.num_classes else 0)  # the mask, the classes, no class
        return Embedding(self.tokens, self.backbone.width, behind, tied=True, scaled=False, dtype=self.backbone.dtype)

    def _read(self, tokens: Tokens, condition: Condition) -> Started:
        """Eq. (3)."""
        if not self.num_classes:
            return tokens
        rows = class_rows(label_of(condition), tokens.shape[0], self.num_classes)
        return jnp.concatenate([self.tokens + 1 + rows[:, None].astype(tokens.dtype), tokens], axis=1)
