"""The contract of a metric: `(evaluation) → {name: number}`, measured on a run's averaged parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset
from metrics.features import PIXELS, Features
from models.model import Model, Variables


@dataclass(frozen=True)
class Evaluation:
    """What a metric may look at."""

    model: Model
    variables: Variables  # averaged parameters
    data: Dataset
    draw: Callable[[int], Float[np.ndarray, "n *s"]]  # the run's first n samples, drawn once
    features: Features = PIXELS  # what pictures are compared in, by the metrics that are `in_features`

    def pictures(self, n: int) -> Float[np.ndarray, "n *s"]:
        """The first n samples as they are looked at: decoded, where they are codes or tokens of images."""
        return self.data.shown(self.draw(n))

    def real(self, split: str, n: int) -> Float[np.ndarray, "m *s"]:
        """The first n examples of what `pictures` are to be like, or as many as there are."""
        return self.data.pictured.arrays(split, n)["x"]


def check_has_labels(metric: str, data: Dataset) -> None:
    """Raises a ValueError where the data has no labels."""
    if not data.num_classes:
        raise ValueError(f"{metric} needs labels, and {type(data).__name__} has none")


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Base of all metrics."""

    in_features: ClassVar[bool] = False  # whether its numbers depend on `Evaluation.features`

    def check(self, data: Dataset) -> None:  # noqa: B027, most can be measured on any data
        """Called before training, after which raw pixels are what is compared.

        Raises:
          ValueError: this cannot be measured on such data.
        """

    def check_features(self, data: Dataset, features: Features) -> None:
        """`check`, called in its stead where other features may have been asked for.

        Raises:
          ValueError: this cannot be measured on such data, or in such features of it.
        """
        self.check(data)

    @abstractmethod
    def __call__(self, evaluation: Evaluation) -> dict[str, float]: ...
