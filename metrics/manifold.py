"""Fidelity and diversity apart: do samples lie where data does, and does data lie where samples do?

A set's manifold is the union of a ball around each of its points, as far as the k-th nearest other one: r_k.

    (1)  precision = mean over samples y of [some real x: ‖y − x‖ ≤ r_k(x)]            1904.06991, §2
    (2)  recall    = mean over real x of [some sample y: ‖x − y‖ ≤ r_k(y)]
    (3)  density   = mean over samples y of #{real x: ‖y − x‖ ≤ r_k(x)}/k              2002.09797, §3
    (4)  coverage  = mean over real x of [some sample y: ‖x − y‖ ≤ r_k(x)]

Of samples of the data's own distribution density is 1 in expectation; it may be more where samples keep to where data
is dense. All four depend on the number of points, so both sets have one size. A sample that holds a number that is not
finite is in no ball, and has none in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from metrics.features import check_sizes, flat
from metrics.metric import Evaluation, Metric
from metrics.neighbours import squared_distances

ROUNDING = 1e-12  # of a squared distance, over the squared lengths that it is the difference of


def squared_radii(x: Float[np.ndarray, "n d"], k: int, chunk: int = 1000) -> Float[np.ndarray, " n"]:
    """r_k² of each point: to its k-th nearest other one.

    Raises:
      ValueError: there are no k others.
    """
    if not 1 <= k < len(x):
        raise ValueError(f"a {k}-th nearest neighbour needs k of at least 1 and more than k examples, got {len(x)}")
    radii = []
    for start in range(0, len(x), chunk):
        rows = np.arange(start, min(start + chunk, len(x)))
        distances = squared_distances(x[rows], x)
        distances[np.arange(len(rows)), rows] = np.nan  # behind all others, as is every point that is not finite
        radii.append(np.partition(distances, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _whole(x: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n d"]:
    """As vectors; one that holds a number that is not finite holds no other. No comparison with it is true."""
    vectors = flat(x)
    return np.where(np.isfinite(vectors).all(1, keepdims=True), vectors, np.nan)


def _in_balls(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], k: int, chunk: int
) -> Iterator[Bool[np.ndarray, "_ m"]]:
    """Which points lie in whose ball, `chunk` points at once."""
    radii = squared_radii(centres, k, chunk)[None, :]
    lengths = (centres**2).sum(1)[None, :]
    for start in range(0, len(points), chunk):
        some = points[start : start + chunk]
        # A point that is the k-th neighbour itself, a copy of it, is in the ball, whatever rounding makes of it.
        slack = ROUNDING * ((some**2).sum(1)[:, None] + lengths)
        yield squared_distances(some, centres) <= radii + slack


def precision_recall(
    real: Float[np.ndarray, "n *s"], samples: Float[np.ndarray, "m *t"], k: int = 3, chunk: int = 1000
) -> tuple[float, float]:
    """Eqs. (1) and (2), in float64.

    Raises:
      ValueError: a set has no more than k examples, or the two differ in the number of features.
    """
    x, y = _whole(real), _whole(samples)
    check_sizes(x, y)
    inside = lambda points, centres: np.concatenate([b.any(1) for b in _in_balls(points, centres, k, chunk)])  # noqa: E731
    return float(inside(y, x).mean()), float(inside(x, y).mean())


def density_coverage(
    real: Float[np.ndarray, "n *s"], samples: Float[np.ndarray, "m *t"], k: int = 5, chunk: int = 1000
) -> tuple[float, float]:
    """Eqs. (3) and (4), in float64.

    Raises:
      ValueError: the real set has no more than k examples, or the two differ in the number of features.
    """
    x, y = _whole(real), _whole(samples)
    check_sizes(x, y)
    pairs, covered = 0, np.zeros(len(x), bool)
    for inside in _in_balls(y, x, k, chunk):
        pairs += int(inside.sum())
        covered |= inside.any(0)
    return pairs / (k * len(y)), float(covered.mean())


@dataclass(frozen=True, kw_only=True)
class Manifold(Metric):
    """Precision, recall, density and coverage of samples against the test split, and of the training split.

    As many samples and training examples are measured as there are test examples, at most `samples`.
    """

    in_features: ClassVar[bool] = True
    samples: int = 1000
    k: int = 3  # of precision and recall
    k_density: int = 5  # of density and coverage

    def __post_init__(self) -> None:
        if min(self.k, self.k_density) < 1 or self.samples <= max(self.k, self.k_density):
            raise ValueError(
                "Manifold: k and k_density must be at least 1 and samples more than both, got "
                f"k={self.k}, k_density={self.k_density} and samples={self.samples}"
            )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        features = evaluation.features
        test = features(evaluation.real("test", self.samples))
        # First, for it says that a split is too small before any sample has been drawn.
        of_train = self._numbers("_of_train", test, features(evaluation.real("train", len(test))))
        return self._numbers("", test, features(evaluation.pictures(len(test)))) | of_train

    def _numbers(self, end: str, real: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> dict[str, float]:
        precision, recall = precision_recall(real, y, self.k)
        density, coverage = density_coverage(real, y, self.k_density)
        numbers = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
        return {name + end: value for name, value in numbers.items()}
