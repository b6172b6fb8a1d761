"""A run of equal blocks as one `lax.scan` over stacked parameters, each block under `jax.checkpoint`.

Compile time and the compiled program's size do not grow with depth. With checkpointing, the backward pass keeps one
carry a block and recomputes the rest (Chen et al. 1604.06174).
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,  # keep only the block's input
    "dots": jax.checkpoint_policies.dots_saveable,  # keep matrix products too
}


def checkpointed(function: Callable[..., Any], remat: str | None) -> Callable[..., Any]:
    """`function` with the named checkpointing: none, full or dots. For a scan's body.

    Raises:
      ValueError: the policy is unknown.
    """
    if remat in (None, "none"):
        return function
    if remat not in POLICIES:
        raise ValueError(f"unknown remat policy {remat!r}; allowed are none, {', '.join(POLICIES)}")
    # Inside a scan of two turns or more XLA cannot merge the recomputation with the forward pass: its guard would only
    # cost time.
    return jax.checkpoint(function, policy=POLICIES[remat], prevent_cse=False)


class Stack(nn.Module):
    """`depth` copies of `block` in sequence: h ← block(h, *context).

    Parameters are one tree with a leading axis of length `depth`, and so are batch statistics where `block` keeps some:
    every copy has its own. `block` must keep the shape of h unless depth is 1.
    """

    block: nn.Module  # built with parent=None
    depth: int
    remat: str | None = None
    # Blocks a turn of the loop, without checkpointing: between turns, what is kept for the gradient is copied into the
    # loop's own arrays, which a CPU feels; in exchange more is compiled.
    unroll: int = 1

    @nn.compact
    def __call__(
        self, h: Float[Array, "b *s"], *context: Any, train: bool = False
    ) -> tuple[Float[Array, "b *t"], Float[Array, "depth b *t"]]:
        """Returns the last block's output and, stacked, every block's (the skip connections of a U-Net)."""
        fresh: dict[str, Any] = {}

        def init(key: jax.Array) -> Any:
            keys = jax.random.split(key, self.depth)
            fresh.update(jax.vmap(lambda k: self.block.init(k, h, *context))(keys))
            return fresh["params"]

        params = self.param("blocks", init)
        if self.is_initializing() and "batch_stats" in fresh:
            self.put_variable("batch_stats", "blocks", fresh["batch_stats"])
        stats = self.get_variable("batch_stats", "blocks")  # None where the blocks keep none
        dropout = jax.random.split(self.make_rng("dropout"), self.depth) if train else None

        def body(h: Any, layer: tuple[Any, Any, Any]) -> tuple[Any, Any]:
            params, stats, key = layer
            variables = {"params": params} if stats is None else {"params": params, "batch_stats": stats}
            rngs, mutable = ({"dropout": key}, ["batch_stats"]) if train else (None, [])
            h, after = self.block.apply(variables, h, *context, train=train, rngs=rngs, mutable=mutable)
            return h, (h, after.get("batch_stats"))

        body, layers = checkpointed(body, self.remat), (params, stats, dropout)
        if self.depth > 1:
            unroll = min(self.unroll, self.depth) if self.remat in (None, "none") else 1
            h, (every, stats) = jax.lax.scan(body, h, layers, unroll=unroll)
        else:  # A block that changes the shape of h cannot be a scan's carry; it is a run of one.
            h, after = body(h, jax.tree.map(lambda leaf: leaf[0], layers))
            every, stats = jax.tree.map(lambda leaf: leaf[None], after)
        if stats is not None and not self.is_initializing():
            self.put_variable("batch_stats", "blocks", stats)
        return h, every
