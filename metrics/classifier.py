"""Features from a small classifier of the data set itself, where an Inception network would know nothing of the images.

Scikit-learn's MLP with hidden layers of 256 and 64 on raw pixels; the features are the 64 of the last hidden layer.
Fréchet distances in them are comparable with one another, on one data set, and with no other feature's.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset
from metrics.features import flat

NAME = "64 features of a 256-64 MLP classifier of the same data"


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier."""

    mlp: Any
    accuracy: float  # on the test split

    def features(self, x: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n 64"]:
        """Activations of the last hidden layer."""
        h = flat(x)
        for weight, bias in zip(self.mlp.coefs_[:-1], self.mlp.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0.0)
        return h


@lru_cache(maxsize=2)
def classifier(data: Dataset) -> Classifier:
    """Fits the classifier on the training split.

    Raises:
      ValueError: the data has no labels.
    """
    train, test = data.arrays("train", 60_000), data.arrays("test", 10_000)
    if "label" not in train:
        raise ValueError(f"{type(data).__name__} has no labels to fit a classifier on")
    mlp = fitted(flat(train["x"]).astype(np.float32), train["label"])
    return Classifier(mlp, float(mlp.score(flat(test["x"]), test["label"])))


def fitted(x: Float[np.ndarray, "n d"], label: np.ndarray) -> Any:
    """Scikit-learn's MLP, a function of the data alone."""
    from sklearn.neural_network import MLPClassifier

    epochs = 12 if len(x) > 10_000 else 100
    settings: dict[str, Any] = {"batch_size": 200, "max_iter": epochs, "n_iter_no_change": epochs, "tol": 0.0}
    mlp = MLPClassifier((256, 64), random_state=0, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it might be fitted longer
        return mlp.fit(x, label)
