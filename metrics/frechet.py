"""Fréchet distance between two sets of features (Heusel et al. 1706.08500, eq. 6).

    (1)  d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½)

What is reported is d², as the field does. The features belong beside every such number: here raw pixels in [−1, 1]
unless a feature function is given (metrics/features.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset
from metrics.features import PIXELS, Features, check_sides, flat
from metrics.metric import Evaluation, Metric

Function = Callable[[Float[np.ndarray, "n *s"]], Float[np.ndarray, "n d"]]


def frechet_distance(x: Float[np.ndarray, "n *s"], y: Float[np.ndarray, "m *t"], features: Function = flat) -> float:
    """Eq. (1), in float64, symmetric in x and y.

    Raises:
      ValueError: a set has fewer examples than features + 1, so its covariance would be singular by construction; a
        number in it is not finite; or the two differ in the number of features.
    """
    first, second = (np.asarray(features(side), np.float64) for side in (x, y))
    check_sides(first, second)
    for name, side in (("first", first), ("second", second)):
        if len(side) < side.shape[1] + 1:
            raise ValueError(
                f"the Fréchet distance over {side.shape[1]} features needs at least {side.shape[1] + 1} examples a "
                f"side; the {name} has {len(side)}"
            )
    sigma1, sigma2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = _sqrt(np.atleast_2d(sigma1))
    # Eigenvalues of a symmetric product: real, where those of Σ₁Σ₂ are only nearly so.
    cross = np.linalg.eigvalsh(root @ np.atleast_2d(sigma2) @ root)
    difference = first.mean(0) - second.mean(0)
    trace = np.trace(np.atleast_2d(sigma1)) + np.trace(np.atleast_2d(sigma2))
    return float(difference @ difference + trace - 2.0 * np.sqrt(np.maximum(cross, 0.0)).sum())


def _sqrt(symmetric: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(Metric):
    """Fréchet distance from samples to the test split, and from the training split to it."""

    in_features: ClassVar[bool] = True
    samples: int = 1000

    def check(self, data: Dataset) -> None:
        self.check_features(data, PIXELS)

    def check_features(self, data: Dataset, features: Features) -> None:
        size = features.size(data.pictured.shape)
        if self.samples < size + 1:
            raise ValueError(
                f"the Fréchet distance over {size} features ({features.name}) needs samples={size + 1} or more, got "
                f"{self.samples}"
            )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        features = evaluation.features
        test = features(evaluation.real("test", 10_000))
        # First, for it says that a split is too small before any sample has been drawn.
        of_train = frechet_distance(features(evaluation.real("train", self.samples)), test)
        pictures = features(evaluation.pictures(self.samples))
        return {"frechet_distance": frechet_distance(pictures, test), "frechet_distance_of_train": of_train}
