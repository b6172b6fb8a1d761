"""Kernel distance between two sets of features, KID where they are Inception's (Bińkowski et al. 1801.01401, §4).

    (1)  k(x, y) = (x·y/d + 1)³,  d features
    (2)  MMD² = Σ_{i≠j} k(xᵢ, xⱼ)/(n(n − 1)) + Σ_{i≠j} k(yᵢ, yⱼ)/(m(m − 1)) − 2 Σᵢⱼ k(xᵢ, yⱼ)/(nm)

(2) is unbiased whatever the sizes, so it may be negative; the Fréchet distance's bias depends on them. As in the paper,
what is reported is the mean of (2) over random subsets of equal size. They overlap, so the standard error beside it is
that of the mean over subsets of these samples, not over other samples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from metrics.examples import mean_and_error
from metrics.features import check_sides, flat
from metrics.metric import Evaluation, Metric


def kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Eq. (1), all pairs."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def kernel_distance(x: Float[np.ndarray, "n *s"], y: Float[np.ndarray, "m *t"], chunk: int = 1000) -> float:
    """Eq. (2) over all of x and y, in float64, symmetric; `chunk` examples of one side at once.

    Raises:
      ValueError: a set has fewer than two examples, or a number in it is not finite; or the two differ in the
        number of features.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"the kernel distance needs at least 2 examples a side, got {len(x)} and {len(y)}")
    first, second = flat(x), flat(y)
    check_sides(first, second)
    total = lambda a, b: sum(kernel(a[i : i + chunk], b).sum() for i in range(0, len(a), chunk))  # noqa: E731
    # Without the pairs of an example with itself.
    within = lambda a: total(a, a) - (((a**2).sum(1) / a.shape[1] + 1.0) ** 3).sum()  # noqa: E731
    n, m = len(first), len(second)
    return float(within(first) / (n * (n - 1)) + within(second) / (m * (m - 1)) - 2.0 * total(first, second) / (n * m))


def over_subsets(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], subsets: int, size: int, seed: int
) -> Float[np.ndarray, " {subsets}"]:
    """Eq. (2) of random subsets, drawn without replacement: subset i is a pure function of (seed, i).

    Raises:
      ValueError: a set is smaller than a subset.
    """
    if min(len(x), len(y)) < size:
        raise ValueError(f"subsets of size={size} are more than the {min(len(x), len(y))} examples of a side")
    found = []
    for i in range(subsets):
        draw = np.random.Generator(np.random.Philox(key=[seed, i]))
        one, other = (draw.choice(len(side), size, replace=False) for side in (x, y))
        found.append(kernel_distance(x[one], y[other]))
    return np.asarray(found)


@dataclass(frozen=True, kw_only=True)
class KID(Metric):
    """Kernel distance from samples to the test split, and from the training split to it: means over subsets."""

    in_features: ClassVar[bool] = True
    samples: int = 10_000
    subsets: int = 100
    size: int = 1000  # of a subset, on each side
    seed: int = 0  # decides the subsets

    def __post_init__(self) -> None:
        if self.size < 2 or self.subsets < 2 or self.samples < self.size or not 0 <= self.seed < 2**31:
            raise ValueError(
                "KID: size and subsets must be at least 2, samples at least size and seed in [0, 2^31); got "
                f"size={self.size}, subsets={self.subsets}, samples={self.samples} and seed={self.seed}"
            )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        features = evaluation.features
        test = features(evaluation.real("test", 10_000))
        # First, for it says that a split is too small before any sample has been drawn.
        of_train = self._numbers("kid_of_train", features(evaluation.real("train", self.samples)), test)
        return self._numbers("kid", features(evaluation.pictures(self.samples)), test) | of_train

    def _numbers(self, name: str, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> dict[str, float]:
        values = over_subsets(x, y, self.subsets, self.size, self.seed)
        return mean_and_error(name, values)
