"""A run of equal blocks as one `lax.scan` over stacked parameters, with gradient checkpointing (models/remat.py).

Compile time and the compiled program's size do not grow with depth.
"""

from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from models.remat import checkpointed_scan
from models.sharding import made_whole

BLOCKS = "blocks"  # of the stacked parameters, and of the stacked batch statistics


class Stack(nn.Module):
    """`depth` copies of `block` in sequence: h ← block(h, *context).

    Parameters are one tree with a leading axis of length `depth`, and so are batch statistics where `block` keeps some:
    every copy has its own. `block` must keep the shape of h unless depth is 1.
    """

    block: nn.Module  # built with parent=None
    depth: int
    remat: str | None = None  # gradient checkpointing, models/remat.py
    # Blocks a turn of the loop, without checkpointing: between turns, what is kept for the gradient is copied into the
    # loop's own arrays, which a CPU feels; in exchange more is compiled.
    unroll: int = 1
    every: bool = False  # whether every block's output is wanted

    @nn.compact
    def __call__(
        self, h: Float[Array, "b *s"], *context: Any, each: Any = None, train: bool = False
    ) -> tuple[Float[Array, "b *t"], Float[Array, "depth b *t"] | None]:
        """Returns the last block's output and, if wanted, every block's (the skip connections of a U-Net).

        Args:
          context: what every block is told besides h.
          each: arrays [depth, …], of which each block is told its own, as its argument after h.
        """
        own = lambda each: () if each is None else (each,)  # noqa: E731
        fresh: dict[str, Any] = {}

        def init(key: jax.Array) -> Any:
            keys, first = jax.random.split(key, self.depth), jax.tree.map(lambda leaf: leaf[0], each)
            fresh.update(jax.vmap(lambda k: self.block.init(k, h, *own(first), *context))(keys))
            return fresh["params"]

        params = self.param(BLOCKS, init)
        if self.is_initializing() and "batch_stats" in fresh:
            self.put_variable("batch_stats", BLOCKS, fresh["batch_stats"])
        stats = self.get_variable("batch_stats", BLOCKS)  # None where the blocks keep none
        dropout = jax.random.split(self.make_rng("dropout"), self.depth) if train else None

        def body(h: Any, layer: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
            params, stats, key, beside = layer
            params = made_whole(params)
            variables = {"params": params} if stats is None else {"params": params, "batch_stats": stats}
            rngs, mutable = ({"dropout": key}, ["batch_stats"]) if train else (None, [])
            h, after = self.block.apply(variables, h, *own(beside), *context, train=train, rngs=rngs, mutable=mutable)
            return h, (h if self.every else None, after.get("batch_stats"))

        layers = (params, stats, dropout, each)
        h, (every, stats) = checkpointed_scan(body, h, layers, self.remat, unroll=self.unroll)
        if stats is not None and not self.is_initializing():
            self.put_variable("batch_stats", BLOCKS, stats)
        return h, every
