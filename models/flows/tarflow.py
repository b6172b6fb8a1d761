"""TarFlow: Zhai et al. 2412.06329, an autoregressive flow over patches whose network is a causal transformer.

    (1)  image → tokens x_1 … x_T, each a patch of P×P×C numbers                                    §2
    (2)  z_1 = x_1,  z_t = (x_t − μ_t(x_<t))·exp(−α_t(x_<t)),  t = 2 … T                            §2
    (3)  log|det| = −Σ α:  block-triangular, and diagonal within a token
    (4)  x_t = z_t·exp(α_t(x_<t)) + μ_t(x_<t),  one token after the other
    (5)  f = … ∘ R ∘ block_2 ∘ R ∘ block_1,  R the sequence in reverse

Eq. (2) is one call of the network (models/flows/causal.py); eq. (4) is T steps of it, each from a cache.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from models.flows.bijection import Bijection, Moved, Params, per_example, zeros
from models.flows.causal import CausalTransformer, Tokens
from models.flows.combinators import Assembled, Chain
from models.flows.permutations import Reverse
from models.flows.reshaping import Patches
from models.flows.stacked import Stacked
from models.model import Condition, label_of
from models.remat import policy


@dataclass(frozen=True, kw_only=True)
class TarFlowBlock(Bijection):
    """Eq. (2), of tokens [B, T, F]."""

    net: CausalTransformer = field(default_factory=CausalTransformer)
    cached: bool = True  # the inverse keeps keys and values; without, it calls the whole network for every token

    def init(self, key: Key[Array, ""], x: Tokens, condition: Condition = None) -> Params:
        return self.net.init(key, x, label_of(condition))["params"]

    def forward(self, params: Params, x: Tokens, condition: Condition = None) -> Moved:
        mu, alpha = self._net(params, x, label_of(condition))
        return (x - mu) * jnp.exp(-alpha), -per_example(alpha)

    def inverse(self, params: Params, z: Tokens, condition: Condition = None) -> Moved:
        label = label_of(condition)
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        rows = (jnp.arange(z.shape[1] - 1), z[:, 1:].swapaxes(0, 1))

        def step(carry: Any, row: Any) -> tuple[Any, Any]:
            (x, state), (_, z_next) = carry, row
            mu, alpha, state = self._net(params, x, state, label, method="step")
            x = z_next * jnp.exp(alpha) + mu
            return (x, state), (x, per_example(alpha))

        def whole(x: Any, row: Any) -> tuple[Any, Any]:
            i, z_next = row
            mu, alpha = (jax.lax.dynamic_index_in_dim(y, i + 1, 1, False) for y in self._net(params, x, label))
            x_next = z_next * jnp.exp(alpha) + mu
            return jax.lax.dynamic_update_index_in_dim(x, x_next, i + 1, 1), (x_next, per_example(alpha))

        # Zeros stand where x is not known yet.
        start = (z[:, 0], self.net.empty(z)) if self.cached else jnp.zeros_like(z).at[:, 0].set(z[:, 0])
        _, (x, changes) = jax.lax.scan(step if self.cached else whole, start, rows)
        return jnp.concatenate([z[:, :1], x.swapaxes(0, 1)], axis=1), zeros(z) + jnp.sum(changes, axis=0)

    def _net(self, params: Params, *arguments: Any, method: str = "__call__") -> Any:
        return self.net.apply({"params": params}, *arguments, method=method)


@dataclass(frozen=True, kw_only=True)
class TarFlow(Assembled):
    """Eq. (1)–(5), of images whose sides `patch` divides. z has the image's shape."""

    patch: int = 4  # P
    blocks: int = 4  # each with a network of its own
    net: CausalTransformer = field(default_factory=CausalTransformer)
    cached: bool = True  # see `TarFlowBlock`
    remat: str | None = None  # gradient checkpointing of the blocks, models/remat.py

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"TarFlow needs at least one block, got blocks={self.blocks}")
        policy(self.remat)  # not reversible: to invert a block takes a step a token

    def assemble(self) -> Bijection:
        # Every block hands its tokens on in reverse, so that all are alike and one scan; if they were an odd number,
        # the tokens are put back in order at the end.
        block = Chain(parts=(TarFlowBlock(net=self.net, cached=self.cached), Reverse(axis=-2)))
        blocks = Stacked(block=block, depth=self.blocks, remat=self.remat)
        return Patches(
            patch=self.patch, bijection=Chain(parts=(blocks, Reverse(axis=-2))) if self.blocks % 2 else blocks
        )
