"""The causal transformer of an autoregressive flow: a whole sequence at once, or its next token from a cache.

(1)  h = x·W_in + position + class
(2)  h ← the pre-norm transformer of models/transformer.py, causal
(3)  (α, μ)_{t+1} = h_t·W_out + b,  zero at the start                                       TarFlow 2412.06329
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.attention import Tokens, by_rows
from models.backbone import State
from models.flows.conditioners import Label
from models.transformer import Transformer


class CausalTransformer(nn.Module):
    """What moves token t, read off the tokens before it."""

    width: int = 128  # of a token
    depth: int = 4  # layers
    heads: int = 2  # of attention; must divide `width`
    expansion: int = 4  # hidden width of the MLP over `width`
    num_classes: int = 0  # classes to condition on; 0 is unconditional
    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of the layers, models/remat.py

    def __call__(self, x: Tokens, label: Int[Array, " b"] | None = None) -> tuple[Tokens, Tokens]:
        """(μ, α) of all tokens, which TarFlow's blocks move by; 0 for the first. In float32 or better.

        Raises:
          ValueError: the heads do not divide the width.
        """
        said, _ = self._read(x, label)
        # What is read at token t moves token t + 1.
        shifted = jnp.concatenate([jnp.zeros_like(said[:, :1]), said[:, :-1]], axis=1)
        alpha, mu = jnp.split(shifted, 2, axis=-1)
        return mu, alpha

    def step(
        self, x: Float[Array, "b f"], state: State, label: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b f"], Float[Array, "b f"], State]:
        """(μ, α) of the token after x, and the state with x in it."""
        said, state = self._read(x[:, None, :], label, state)
        alpha, mu = jnp.split(said[:, 0], 2, axis=-1)
        return mu, alpha, state

    def empty(self, x: Tokens) -> State:
        """The state of sequences like `x`, before their first token."""
        state = self._transformer().empty(x.shape[0], x.shape[1])
        dtype = self.dtype or jnp.promote_types(x.dtype, jnp.float32)
        return state | {name: state[name].astype(dtype) for name in ("keys", "values")}

    @nn.compact
    def _read(self, x: Tokens, label: Any, state: State = None) -> tuple[Float[Array, "b t g"], State]:
        """α and μ of the tokens after those of `x`: a whole sequence, or one token and what came before it."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        length = x.shape[1] if state is None else state["keys"].shape[3]
        places = self.param("positions", nn.initializers.normal(0.01), (length, self.width))
        places = places if state is None else jax.lax.dynamic_slice_in_dim(places, state["index"], 1)
        embed = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="embed")
        h = by_rows(embed, x).astype(wide) + places[None].astype(wide)
        if self.num_classes:
            h = h + Label(self.num_classes, name="class")(h, label).astype(wide)
        h, state = self._transformer(name="transformer")(h, state)
        out = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, name="out")
        return by_rows(out, h).astype(wide), state

    def _transformer(self, **placed: Any) -> Transformer:
        sizes = {name: getattr(self, name) for name in ("width", "depth", "heads", "dtype", "remat")}
        settings: dict[str, Any] = {
            "expansion": float(self.expansion),
            "positions": "none",
            "initial": "xavier",
            "fused": False,
        }
        return Transformer(**sizes, **settings, **(placed or {"parent": None}))
