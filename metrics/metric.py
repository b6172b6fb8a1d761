"""The contract of a metric: `(evaluation) → {name: number}`, measured on a run's averaged parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset
from models.model import Model, Variables


@dataclass(frozen=True)
class Evaluation:
    """What a metric may look at."""

    model: Model
    variables: Variables  # averaged parameters
    data: Dataset
    draw: Callable[[int], Float[np.ndarray, "n *s"]]  # the run's first n samples, drawn once

    def pictures(self, n: int) -> Float[np.ndarray, "n *s"]:
        """The first n samples as they are looked at: decoded, where they are codes or tokens of images."""
        return self.data.shown(self.draw(n))

    def real(self, split: str, n: int) -> Float[np.ndarray, "m *s"]:
        """The first n examples of what `pictures` are to be like, or as many as there are."""
        return self.data.pictured.arrays(split, n)["x"]


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Base of all metrics."""

    def check(self, data: Dataset) -> None:  # noqa: B027, most can be measured on any data
        """Called before training.

        Raises:
          ValueError: this cannot be measured on such data.
        """

    @abstractmethod
    def __call__(self, evaluation: Evaluation) -> dict[str, float]: ...


def flat(x: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n d"]:
    """Examples as float64 vectors."""
    return np.asarray(x, np.float64).reshape(len(x), -1)
