"""What sequence models are made of: a network from vectors to vectors, one a place, that can go on from a state.

    (1)  (h'_1 … h'_T, s_T) = f(h_1 … h_T, s_0)
    (2)  f(h_1 … h_T, s_0) = f(h_{t+1} … h_T, s_t) after f(h_1 … h_t, s_0): a sequence may be read in pieces

So one call is everything that decoding needs: the whole of a prompt (prefill) and one token more (a step) differ in T
alone. An RNN's state is its carry; a transformer's is the keys and values of all it has read.
"""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

Sequence = Float[Array, "b t f"]
Outputs = Float[Array, "b t width"]
Lengths = Int[Array, " b"]
State = Any  # a dict of arrays; those of two axes and more have the examples on the second, behind the layers


def within(lengths: Lengths, size: int) -> Bool[Array, "b {size}"]:
    """Which places of sequences padded to `size` are their own."""
    return jnp.arange(size)[None, :] < lengths[:, None]


def rearranged(state: State, rows: Int[Array, " n"]) -> State:
    """The state of other examples, named by their rows in this one (beam search)."""
    return jax.tree.map(lambda leaf: leaf[:, rows] if leaf.ndim > 1 else leaf, state)


class Backbone(nn.Module, ABC):
    """Base. `dtype` and `remat` are as the experiment says where they are None."""

    width: int = 128  # of every vector, in and out
    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing, models/remat.py

    @property
    def limit(self) -> int:
        """The longest sequence that can be read; 0 where there is no such limit."""
        return 0

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input: what a step needs."""
        return True

    @property
    def starts(self) -> bool:
        """Whether its first input is what stands before the sequence, and not a part of it."""
        return False

    @abstractmethod
    def __call__(
        self, h: Sequence, state: State = None, lengths: Lengths | None = None, train: bool = False
    ) -> tuple[Outputs, State]:
        """Eq. (1), in float32, or float64 if h is.

        Args:
          state: where to go on from; None is the beginning.
          lengths: of sequences that are padded at their end to the same T. What stands behind the end changes nothing
            else, and what is answered there means nothing.

        Returns:
          The outputs, and the state after them: None if none was given and it would cost something (a transformer).
        """

    @abstractmethod
    def empty(self, size: int, length: int) -> State:
        """The state of `size` sequences of which nothing has been read and at most `length` places will be."""
