"""How often a sample is read as the class that was asked for.

The reader is a classifier that was fitted on real images (metrics/classifier.py). Its own accuracy on the test split
bounds what the figure can say, and is reported beside it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data.dataset import Dataset
from metrics.classifier import Classifier, classifier
from metrics.features import flat
from metrics.metric import Evaluation, Metric, check_has_labels


def read_as(judge: Classifier, x: Float[np.ndarray, "n *s"], label: Int[np.ndarray, " n"]) -> float:
    """Fraction of x that `judge` gives its label."""
    return float(np.mean(judge.mlp.predict(flat(x)) == label))


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy(Metric):
    """Fraction of a class-conditional model's samples read as the class asked for, and of the test split as its own."""

    samples: int = 1000

    def check(self, data: Dataset) -> None:
        check_has_labels("class accuracy", data.pictured)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        classes = getattr(evaluation.model, "num_classes", 0)
        if not classes:
            raise ValueError("class accuracy needs a class-conditional model; this one is told no class")
        judge = classifier(evaluation.data.pictured)
        asked = np.arange(self.samples) % classes  # all in turn, as a run's samples are
        found = read_as(judge, evaluation.pictures(self.samples), asked)
        return {"class_accuracy": found, "class_accuracy_of_test": judge.accuracy}
