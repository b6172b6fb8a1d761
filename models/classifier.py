"""A classifier of data at every noise level of a path: p(y | xₜ, t).

    (1)  log p(y = k | xₜ, t) = log softmax(F(c_in·xₜ, 1000·t))_k

F is the residual MLP of models/mlp.py with class logits in place of its output.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from models.embedding import Conditioning
from models.mlp import CONDITIONING, MLPBlock
from models.model import Batch, Model, Variables, wide
from models.stack import Stack
from paths.path import Path, expand


class ClassifierMLP(nn.Module):
    """Residual MLP over the flattened input, class logits out."""

    num_classes: int = 10  # logits
    width: int = 256  # width of the residual stream
    depth: int = 2  # number of residual blocks
    expansion: int = 2  # hidden width of a block over `width`
    dropout: float = 0.0  # of the hidden layers, while training
    dtype: str | None = None  # compute dtype; as the experiment says by default
    remat: str | None = None  # gradient checkpointing of the blocks; as the experiment says by default

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *s"], noise: Float[Array, " b"], train: bool = False
    ) -> Float[Array, "b classes"]:
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        c = nn.silu(Conditioning(CONDITIONING, CONDITIONING, name="conditioning")(noise))
        h = wide(nn.Dense(self.width, dtype=self.dtype, name="in")(flat))
        block = MLPBlock(self.width, self.expansion, self.dropout, self.dtype, parent=None)
        h, _ = Stack(block, self.depth, self.remat, name="blocks")(h, c, train=train)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="out")(nn.LayerNorm()(h))


@dataclass(frozen=True, kw_only=True)
class NoisyClassifier(Model):
    """Eq. (1). It draws nothing itself; a denoiser on the same path is guided by it."""

    net: ClassifierMLP = field(default_factory=ClassifierMLP)
    path: Path

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return self.net.num_classes

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        x = batch["x"]
        return {"params": self.net.init(key, x, jnp.full(x.shape[:1], 500.0))["params"], "state": {}}

    def logits(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        dropout: Key[Array, ""] | None = None,
    ) -> Float[Array, "b classes"]:
        """F at xₜ = x. Pass a `dropout` key while training, none otherwise."""
        output: Any = self.net.apply(
            {"params": variables["params"]},
            expand(self.path.input_scale(t), x) * x,
            1000.0 * t,
            train=dropout is not None,
            rngs={"dropout": dropout} if dropout is not None else None,
        )
        return output

    def log_prob(
        self, variables: Variables, x: Float[Array, "b *s"], t: Float[Array, " b"], label: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """log p(label | xₜ = x, t), in nats; 0 for "no class"."""
        log_probs = jax.nn.log_softmax(self.logits(variables, x, t))
        return jnp.sum(jax.nn.one_hot(label, self.num_classes) * log_probs, axis=1)
