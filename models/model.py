"""What every model is: a frozen dataclass of settings with pure methods, and `variables` passed in and out.

`variables` is `{"params": …, "state": …}`: what the optimiser sees, and what it does not (codebook sums, batch
statistics; empty for most). A batch is a dict with `x` and, where the set has them, `label`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from models.sharding import WIDTHS, Split

Variables = Mapping[str, Any]
Batch = Mapping[str, Array]
Condition = Mapping[str, Array] | None

NULL_LABEL = -1  # "no class": a class-conditional network answers unconditionally


def wide(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """In float32, or in float64 if it is: what sums of many blocks are kept in, whatever blocks compute in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def label_of(condition: Condition) -> Int[Array, " b"] | None:
    """Each example's class, if the condition tells it."""
    return (condition or {}).get("label")


def class_rows(label: Int[Array, " b"] | None, size: int, num_classes: int) -> Int[Array, " {size}"]:
    """Each example's row in a table of `num_classes` + 1 rows, of which the last stands for no class."""
    index = jnp.full((size,), num_classes) if label is None else label
    return jnp.where(index < 0, num_classes, index)


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """Base of all models. Each family adds its own methods (see `Denoiser`, `Flow`)."""

    @property
    def data_batches(self) -> int:
        """How many of a run's batches `init` wants to see the values of; 0 if it looks at their shape alone."""
        return 0

    @property
    def split(self) -> Split:
        """Which variables are split over the mesh by their names: hidden widths and heads, as layers are called."""
        return WIDTHS

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:  # noqa: B027, most take what the data gives
        """Called on every batch of a run before its step.

        Raises:
          ValueError: it holds what cannot be trained on, and no compiled step could say so.
        """

    def check(self, variables: Variables) -> None:  # noqa: B027, most variables will do
        """Called once on variables that have been trained, before they are drawn from or measured.

        Raises:
          ValueError: they are of no use.
        """

    @abstractmethod
    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Fresh variables for data shaped like `batch`."""


class Net(nn.Module, ABC):
    """Base of the networks a `Denoiser` can hold: any Linen module with this call.

    Every net carries two settings of the compute rather than of the function. None means "as the experiment says":
    `train.py` fills them from `--precision` and `--remat`.
    """

    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of the repeated blocks, models/remat.py

    @abstractmethod
    def __call__(
        self,
        x: Float[Array, "b *s"],
        noise: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        interval: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b *s"]:
        """F(c_in·xₜ, c_noise, label), in float32 and of x's shape. `interval`: see models/jump.py."""
