"""Nearest-neighbour numbers: can samples be told from data, and are they copies of it?

    (1)  two-sample accuracy: leave-one-out accuracy of a 1-nearest-neighbour classifier on the union of two equally
         large sets (Lopez-Paz & Oquab 1610.06545, §3.1). 0.5: indistinguishable; 1: apart; below 0.5: one copies the
         other.
    (2)  nearest-train distance: mean over samples of min_i ‖x − x_i‖₂ over the training set, in data units.

Distances are Euclidean, in raw pixels. For (1) a sample that holds a number that is not finite is far from everything,
and told apart; (2) is then not finite either.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metrics.features import flat
from metrics.metric import Evaluation, Metric


def squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """All ‖xᵢ − yⱼ‖², by one matrix product."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * x @ y.T, 0.0)


def two_sample_accuracy(x: Float[np.ndarray, "n *s"], y: Float[np.ndarray, "m *s"]) -> float:
    """Number (1), in [0, 1]. The larger set is cut into windows of the smaller one's size that cover it; their mean."""
    large, small = sorted((flat(x), flat(y)), key=len, reverse=True)
    size = len(small)
    if size < 2:
        raise ValueError(f"two-sample accuracy needs at least 2 examples a side, got {len(x)} and {len(y)}")
    windows = -(-len(large) // size)
    starts = np.linspace(0, len(large) - size, windows).round().astype(int)
    return float(np.mean([_accuracy(large[start : start + size], small) for start in starts]))


def _accuracy(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    both = np.concatenate([x, y])
    side = np.arange(len(both)) < len(x)
    broken = (~np.isfinite(both)).max(axis=1, keepdims=True)
    both = np.where(broken, 0.0, both)
    distances = squared_distances(both, both)
    distances[broken | broken.T] = np.inf
    np.fill_diagonal(distances, np.inf)
    # Exact copies tie at distance 0 and would be counted by their order; half of such a tie is right.
    nearest = distances.min(axis=1, keepdims=True)
    tied = distances <= nearest * (1 + 1e-12) + 1e-12
    right = (tied * (side[:, None] == side[None, :])).sum(1) / tied.sum(1)
    return float(np.mean(np.where(broken[:, 0], 1.0, right)))


def nearest_distances(
    x: Float[np.ndarray, "n *s"], reference: Float[np.ndarray, "m *s"], chunk: int = 1000
) -> Float[np.ndarray, " n"]:
    """Distance of each example of x to its nearest one of `reference`."""
    x, reference = flat(x), flat(reference)
    parts = [squared_distances(x[i : i + chunk], reference).min(1) for i in range(0, len(x), chunk)]
    return np.sqrt(np.concatenate(parts))


@dataclass(frozen=True, kw_only=True)
class TwoSampleAccuracy(Metric):
    """1-NN accuracy, samples against the test split; and the training split against it."""

    samples: int = 1000

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        test = evaluation.real("test", self.samples)
        train = evaluation.real("train", self.samples)
        return {
            "two_sample_accuracy": two_sample_accuracy(evaluation.pictures(self.samples), test),
            "two_sample_accuracy_of_train": two_sample_accuracy(train, test),
        }


@dataclass(frozen=True, kw_only=True)
class NearestTrainDistance(Metric):
    """Mean distance to the nearest training example, of samples and of the test split. Near 0: memorised."""

    samples: int = 1000

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        train = evaluation.real("train", 100_000)
        test = evaluation.real("test", self.samples)
        return {
            "nearest_train_distance": float(nearest_distances(evaluation.pictures(self.samples), train).mean()),
            "nearest_train_distance_of_test": float(nearest_distances(test, train).mean()),
        }
