"""A density of token sequences, one token after the other, on any backbone.

    (1)  log P(x_1 … x_T) = Σ_t log P(x_t | x_<t),  P(x_t | x_<t) = softmax(h_t·W),  h from the tokens before t
    (2)  h_t reads E[x_<t], rows of a table; tied: W = Eᵀ                                    1608.05859; 1706.03762 §3.4
    (3)  where sequences are modelled from their start, a start token stands before x_1, one for each class where the
         model is conditioned on classes; else x_1 is given and the sum begins at t = 2

What the samplers ask of it is `prefill` and `step`; what the losses ask, `read` and `logits`.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from models.backbone import Backbone, State
from models.model import Batch, Condition, Model, Variables, class_rows, label_of
from models.transformer import Transformer

Tokens = Int[Array, "b t"]
Started = Int[Array, "b _"]  # one longer, or shorter, than Tokens
Logits = Float[Array, "b _ v"]


class Embedding(nn.Module):
    """Eq. (2): tokens to vectors, and vectors to logits."""

    vocabulary: int
    width: int
    starts: int  # start tokens, the rows behind the vocabulary's
    tied: bool
    scaled: bool
    dtype: str | None

    def setup(self) -> None:
        std = self.width**-0.5 if self.scaled else 0.02
        self.table = self.param("table", nn.initializers.normal(std), (self.vocabulary + self.starts, self.width))
        if not self.tied:
            shape = (self.vocabulary, self.width)
            self.kernel = self.param("out_kernel", nn.initializers.normal(self.width**-0.5), shape)
            self.bias = self.param("out_bias", nn.initializers.zeros, shape[:1])

    def __call__(self, tokens: Tokens) -> Float[Array, "b t f"]:
        h = self.table[tokens]
        return h * self.width**0.5 if self.scaled else h

    def logits(self, h: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        """In float32."""
        dtype = self.dtype or jnp.float32
        rows = h.reshape(-1, self.width).astype(dtype)
        matrix = (self.table[: self.vocabulary] if self.tied else self.kernel).astype(dtype)
        z = jax.lax.dot_general(rows, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return (z if self.tied else z + self.bias[None]).reshape(*h.shape[:-1], -1)


class Reading(NamedTuple):
    """A batch, read by a model."""

    h: Float[Array, "b t f"]  # from which `logits` follow
    targets: Tokens  # what each is to predict
    weight: Float[Array, "b t"]  # how much each target counts
    state: Any  # the model's new `variables["state"]`


@dataclass(frozen=True, kw_only=True)
class OverTokens(Model):
    """Base of all models of tokens, those of models/masked.py among them."""

    vocabulary: int | None = None  # number of tokens; None: the data's

    @property
    def tokens(self) -> int:
        """The vocabulary.

        Raises:
          ValueError: nobody has said it.
        """
        if not self.vocabulary:
            raise ValueError(f"{type(self).__name__} is of tokens, and neither it nor its data says how many there are")
        return self.vocabulary


@dataclass(frozen=True, kw_only=True)
class TokenModel(OverTokens):
    """Base of the models that samplers/autoregressive.py draws from and losses/sequence.py trains."""

    stop: int | None = None  # the token after which a sequence has ended; None: the data's, if it has one

    @property
    @abstractmethod
    def limit(self) -> int:
        """The longest sequence that can be read; 0 where there is no such limit."""

    @property
    def slides(self) -> bool:
        """Whether a longer one may go on from its own later half, read as a beginning."""
        return True

    @abstractmethod
    def read(self, variables: Variables, batch: Batch, key: Key[Array, ""] | None = None) -> Reading:
        """All places of a batch at once. With a key, as in training: dropout, and what is carried over goes on."""

    @abstractmethod
    def logits(self, variables: Variables, h: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        """Of what `read` found, in float32."""

    @abstractmethod
    def apply(self, variables: Variables, tokens: Tokens, condition: Condition = None) -> Logits:
        """Logits of the token behind each of those given; with a start token, of the first as well, so T + 1."""

    @abstractmethod
    def prefill(
        self, variables: Variables, tokens: Tokens, length: int, condition: Condition = None
    ) -> tuple[State, Float[Array, "b v"]]:
        """The state after a prompt, and the logits of the token behind it.

        Args:
          tokens: [B, P]; P may be 0 where there is a start token.
          length: tokens that will be read in all, the prompt's among them.
        """

    @abstractmethod
    def step(self, variables: Variables, state: State, token: Int[Array, " b"]) -> tuple[State, Float[Array, "b v"]]:
        """Reads one token more: the new state, and the logits of the token behind it."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel(TokenModel):
    """Eq. (1)–(3)."""

    backbone: Backbone = field(default_factory=Transformer)
    tied: bool = True
    scaled: bool = False  # embeddings times √width, as the 2017 transformer has them
    from_start: bool = False  # the first token is modelled too
    num_classes: int = 0  # classes to condition on, which needs `from_start`; 0 is unconditional
    carried: bool = False  # each training batch goes on from the state at the last one's end (truncated BPTT)

    def __post_init__(self) -> None:
        if self.from_start and self.backbone.limit == 1:
            raise ValueError("a context of 1 has room for the start token alone")
        if self.num_classes and not self.from_start:
            raise ValueError("a class is told by the start token: num_classes needs from_start")
        if self.backbone.starts and not self.from_start:
            raise ValueError(f"a {type(self.backbone).__name__} begins with the start token: it needs from_start")
        if not self.backbone.causal:
            raise ValueError("a network in two directions sees what it is to predict; the backbone must be causal")
        if self.carried and (self.from_start or self.backbone.limit or isinstance(self.backbone, Transformer)):
            raise ValueError("what is carried from batch to batch is an RNN's state, without a start token")

    @property
    def limit(self) -> int:
        # A start token takes one place.
        return self.backbone.limit and self.backbone.limit - self.from_start

    @property
    def slides(self) -> bool:
        return not self.backbone.starts  # the later half of a grid begins somewhere else

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        embed_key, key = jax.random.split(key)
        inputs = self._shifted(batch)
        params: dict[str, Any] = {"embedding": self._embedding.init(embed_key, inputs)["params"]}
        h = self._embedding.apply({"params": params["embedding"]}, inputs)
        params["backbone"] = self.backbone.init(key, h)["params"]
        state = {"carried": self.backbone.empty(inputs.shape[0], 0)} if self.carried else {}
        return {"params": params, "state": state}

    def read(self, variables: Variables, batch: Batch, key: Key[Array, ""] | None = None) -> Reading:
        x = batch["x"]
        weight = batch.get("weight", jnp.ones(x.shape, jnp.float32))
        carried = variables["state"]["carried"] if self.carried and key is not None else None
        h, after = self._hidden(variables, self._shifted(batch), carried, key)
        state = variables["state"]
        if carried is not None:
            state = {"carried": jax.lax.stop_gradient(after)}
        return Reading(h, x, weight, state) if self.from_start else Reading(h, x[:, 1:], weight[:, 1:], state)

    def logits(self, variables: Variables, h: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        return self._embedding.apply({"params": variables["params"]["embedding"]}, h, method="logits")  # type: ignore[return-value]

    def apply(self, variables: Variables, tokens: Tokens, condition: Condition = None) -> Logits:
        return self.logits(variables, self._hidden(variables, self._started(tokens, condition))[0])

    def prefill(
        self, variables: Variables, tokens: Tokens, length: int, condition: Condition = None
    ) -> tuple[State, Float[Array, "b v"]]:
        tokens = self._started(tokens, condition)
        if not tokens.shape[1]:
            raise ValueError("nothing can be predicted from nothing: give a prompt, or a model --model.from-start")
        state = self.backbone.empty(tokens.shape[0], length + self.from_start)
        h, state = self._hidden(variables, tokens, state)
        return state, self.logits(variables, h[:, -1])

    def step(self, variables: Variables, state: State, token: Int[Array, " b"]) -> tuple[State, Float[Array, "b v"]]:
        h, state = self._hidden(variables, token[:, None], state)
        return state, self.logits(variables, h[:, 0])

    def _hidden(
        self, variables: Variables, tokens: Tokens, state: State = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b t f"], State]:
        params = variables["params"]
        h = self._embedding.apply({"params": params["embedding"]}, tokens)
        rngs = None if key is None else {"dropout": key}
        return self.backbone.apply({"params": params["backbone"]}, h, state, train=key is not None, rngs=rngs)  # type: ignore[return-value]

    @property
    def _embedding(self) -> Embedding:
        starts = self.num_classes + 1 if self.from_start else 0
        return Embedding(self.tokens, self.backbone.width, starts, self.tied, self.scaled, self.backbone.dtype)

    def _started(self, tokens: Tokens, condition: Condition) -> Started:
        """Eq. (3)."""
        if not self.from_start:
            return tokens
        rows = class_rows(label_of(condition) if self.num_classes else None, tokens.shape[0], self.num_classes)
        return jnp.concatenate([self.tokens + rows[:, None].astype(tokens.dtype), tokens], axis=1)

    def _shifted(self, batch: Batch) -> Started:
        """What is read to predict the batch: all but its last token."""
        return self._started(batch["x"][:, :-1], batch)
