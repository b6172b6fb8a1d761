"""A number from a sequence: y = h_T·w + b, h_T what a backbone answers at the last place."""

from dataclasses import dataclass, field

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from models.backbone import Backbone
from models.model import Batch, Model, Variables
from models.rnn import LSTM


@dataclass(frozen=True, kw_only=True)
class SequenceRegressor(Model):
    """Reads x [B, T, F]."""

    backbone: Backbone = field(default_factory=LSTM)

    def __post_init__(self) -> None:
        if not self.backbone.causal:
            raise ValueError("backwards, h_T has seen only x_T: the backbone must be causal")
        if self.backbone.starts:
            raise ValueError(f"a {type(self.backbone).__name__} takes x_1 for what stands before the sequence")

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        if batch["x"].ndim != 3:
            raise ValueError(
                f"a SequenceRegressor reads vectors over time [B, T, F], and this data has {batch['x'].shape}"
            )
        own, other = jax.random.split(key)
        params = {"backbone": self.backbone.init(own, batch["x"])["params"]}
        h = batch["x"][:, 0, :1].repeat(self.backbone.width, axis=1)
        return {"params": params | {"out": nn.Dense(1).init(other, h)["params"]}, "state": {}}

    def predict(
        self, variables: Variables, x: Float[Array, "b t f"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " b"]:
        """y; with a key, as in training."""
        params = variables["params"]
        rngs = None if key is None else {"dropout": key}
        h, _ = self.backbone.apply({"params": params["backbone"]}, x, train=key is not None, rngs=rngs)  # type: ignore[misc]
        return self.answer(variables, h[:, -1])

    def answer(self, variables: Variables, h: Float[Array, "b f"]) -> Float[Array, " b"]:
        """y of h_T."""
        return nn.Dense(1).apply({"params": variables["params"]["out"]}, h)[:, 0]  # type: ignore[index]
