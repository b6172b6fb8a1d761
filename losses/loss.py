"""The contract of a loss: `(model, variables, key, batch, step) → Objective`, pure, one value an example."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.model import NULL_LABEL, Batch, Condition, Model, Variables


class Objective(NamedTuple):
    """What a loss returns. The train step minimises the mean of `value`."""

    value: Float[Array, " b"]
    metrics: Mapping[str, Array]  # for the log; the train step takes means
    state: Any  # the model's new `variables["state"]`


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """Base of all losses."""

    def check_parts(self, parts: int) -> None:  # noqa: B027, most are means over examples
        """Called before training with the parts that a batch is read in (`accumulate`).

        Raises:
          ValueError: the loss of a batch is not the mean of its parts'.
        """

    @abstractmethod
    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        """The loss of each example.

        Args:
          key: this step's own.
          batch: arrays with the examples on the leading axis, as the data set has them (data/dataset.py).
          step: the number of steps already taken, for annealing.

        Raises:
          TypeError: the model is of another family.
          ValueError: the model's path or face, or the batch, is not one that this loss is of.
        """


def check_dropout(label_dropout: float) -> None:
    """Raises a ValueError where it is no part of the labels."""
    if not 0.0 <= label_dropout <= 1.0:
        raise ValueError(f"label_dropout={label_dropout} is not in [0, 1]")


def class_condition(key: Key[Array, ""], batch: Batch, dropout: float) -> Condition:
    """The batch's classes as a condition, a fraction of them replaced by "no class"; None where it has none."""
    if "label" not in batch:
        return None
    label = batch["label"]
    dropped = jax.random.bernoulli(key, dropout, label.shape)
    return {"label": jnp.where(dropped, NULL_LABEL, label)}


def every_class(batch: Batch) -> Condition:
    """The batch's classes as a condition, all of them; None where it has none."""
    return {"label": batch["label"]} if "label" in batch else None


def told(model: Model, batch: Batch) -> Batch:
    """The batch as far as the model is told of it: without labels, where it is not conditioned on classes."""
    if getattr(model, "num_classes", 0):
        return batch
    return {name: value for name, value in batch.items() if name != "label"}


def mean_over_dims(value: Float[Array, "b *s"]) -> Float[Array, " b"]:
    """One number an example, in float32."""
    return jnp.mean(value.astype(jnp.float32), axis=tuple(range(1, value.ndim)))
