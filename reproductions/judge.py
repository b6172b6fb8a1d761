"""Who looks at samples for the figures: a classifier of the set's own real images (metrics/classifier.py)."""

import math
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset
from metrics.classifier import NAME, Classifier, classifier
from metrics.frechet import frechet_distance
from reproductions.reproduction import Row
from training.trained import Trained


def judge_of(images: Dataset) -> Classifier:
    """The classifier, and how good it is."""
    judge = classifier(images)
    print(f"features: {NAME}, {100 * judge.accuracy:.1f} % right on the test split", flush=True)
    return judge


class Distances:
    """How far samples are from the training split, in raw pixels and in the features of metrics/classifier.py."""

    COLUMNS: ClassVar[dict[str, str]] = {
        "frechet_pixels": "ours: Fréchet, raw pixels",
        "frechet_classifier": "ours: Fréchet, classifier features",
    }

    def __init__(self, trained: Trained, scale: str) -> None:
        data = trained.experiment.data
        self.judge = judge_of(data)
        self.train, self.test = data.arrays("train", 60_000)["x"], data.arrays("test", 1000)["x"]
        pixels = math.prod(data.shape)
        self.samples = max({"paper": 50_000, "tiny": 400}.get(scale, 1000), pixels + 1)  # to draw for a figure
        self.enough_test_images = len(self.test) > pixels

    def __call__(self, x: Float[np.ndarray, "n *s"]) -> Row:
        found: Row = {"frechet_pixels": frechet_distance(x, self.train)}
        return found | {"frechet_classifier": frechet_distance(x, self.train, self.judge.features)}

    def of_test_images(self) -> Row | None:
        """What real images of the test split are at; None where they are too few."""
        return self(self.test) if self.enough_test_images else None
