"""How often a classifier of real images is sure of what a sample is: whether a person could read it.

The classifier is metrics/classifier.py's; what it makes of the test split bounds what the figure can say, and is
reported beside it. It says nothing of which class was asked for (metrics/class_accuracy.py).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset
from metrics.classifier import Classifier, classifier
from metrics.features import flat
from metrics.metric import Evaluation, Metric, check_has_labels


def sure_of(judge: Classifier, x: Float[np.ndarray, "n *s"], above: float) -> float:
    """Fraction of x to which `judge` gives one class with a probability above that."""
    return float(np.mean(judge.mlp.predict_proba(flat(x)).max(axis=1) > above))


@dataclass(frozen=True, kw_only=True)
class Confidence(Metric):
    """Fraction of samples, and of the test split, with one class above a probability."""

    samples: int = 1000
    above: float = 0.9

    def check(self, data: Dataset) -> None:
        check_has_labels("confidence", data.pictured)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        judge = classifier(evaluation.data.pictured)
        return {
            "confident": sure_of(judge, evaluation.pictures(self.samples), self.above),
            "confident_of_test": sure_of(judge, evaluation.real("test", self.samples), self.above),
        }
