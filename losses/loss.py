"""The contract of a loss: `(model, variables, key, batch, step) → Objective`, pure, one value an example."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key

from models.model import Batch, Model, Variables


class Objective(NamedTuple):
    """What a loss returns. The train step minimises the mean of `value`."""

    value: Float[Array, " b"]
    metrics: Mapping[str, Array]  # for the log; the train step takes means
    state: Any  # the model's new `variables["state"]`


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """Base of all losses."""

    @abstractmethod
    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        """Args: key, this step's own; step, the number of steps already taken (for annealing)."""
