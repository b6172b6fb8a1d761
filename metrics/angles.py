"""The angles that margins are to make small within a class, and large between classes.

    (1)  cᵧ = Σᵢ uᵢ/‖Σᵢ uᵢ‖ over the directions uᵢ of class y: its mean direction
    (2)  within:   mean over embeddings of ∠(uᵢ, c of its class)
    (3)  between:  dᵧ = min over z ≠ y of ∠(cᵧ, c_z), to the nearest other class;  the mean of dᵧ over classes, and the
         smallest dᵧ

(2) and the mean of (3) are the "Intra" and the "Inter" of ArcFace's table of angles (1801.07698 Table 3); the smallest
is that of the two classes nearest one another. A class of one image is its own mean direction, at an angle of 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from data.dataset import Dataset
from metrics.embeddings import embedded
from metrics.examples import named
from metrics.metric import Evaluation, Metric, check_has_labels
from metrics.verification import chunks, directions


def angles(u: Float[np.ndarray, "n d"], v: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Of each unit vector of u and that of v, in degrees. Exact also near 0, where a cosine has lost its digits."""
    apart, along = (np.linalg.norm(side, axis=1) for side in (u - v, u + v))
    return np.degrees(2.0 * np.arctan2(apart, along))


def class_angles(x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Numbers (2) and (3), in degrees; x may be of any length.

    Raises:
      ValueError: there are fewer than two classes.
    """
    unit = directions(x)
    number, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    if len(sizes) < 2:
        raise ValueError(f"angles between classes need two of them or more, got {len(sizes)}")
    sums = np.zeros((len(sizes), unit.shape[1]))
    np.add.at(sums, number, unit)
    means = directions(sums)
    between = angles(means, means[_nearest_others(means)])
    return {
        "intra_class_angle": float(angles(unit, means[number]).mean()),
        "inter_class_angle": float(between.mean()),
        "smallest_inter_class_angle": float(between.min()),
    }


def _nearest_others(unit: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    found = []
    for rows in chunks(len(unit), len(unit)):
        similar = unit[rows] @ unit.T
        own = np.arange(len(similar))
        similar[own, rows.start + own] = -np.inf
        found.append(similar.argmax(axis=1))
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class Angles(Metric):
    """Angles within and between the classes of a split."""

    split: Literal["train", "test"] = "test"
    examples: int = 10_000  # the first so many of the split

    def __post_init__(self) -> None:
        if self.examples < 2:
            raise ValueError(f"examples={self.examples} must be at least 2, of two classes")

    def check(self, data: Dataset) -> None:
        check_has_labels("Angles", data)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        arrays = evaluation.data.arrays(self.split, self.examples)
        return named(class_angles(embedded(evaluation, arrays["x"]), arrays["label"]), self.split)
