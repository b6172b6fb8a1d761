"""What an embedder is measured by: its embeddings' directions, in pairs, among each other, and beside the head's rows.

The numbers are those of metrics/verification.py, in which no embedding's length counts.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from data.dataset import Dataset
from data.verification_pairs import Pairs, drawn_pairs, read_images, read_pairs
from metrics.examples import over_examples
from metrics.metric import Evaluation, Metric, check_has_labels
from metrics.verification import (
    auc,
    check_far,
    cosines,
    directions,
    equal_error_rate,
    knn_accuracy,
    rank1,
    tar_at_far,
    verification_accuracy,
)
from models.embedder import Embedder, unit
from models.model import Model, Variables

BATCH = 500  # examples embedded at once
PRODUCTS = 2**26  # those with the head's rows that are held at once


def embedder(model: Model) -> Embedder:
    """`model`, if it is one.

    Raises:
      ValueError: it is another kind of model; says which.
    """
    if not isinstance(model, Embedder):
        raise ValueError(f"embeddings are those of an Embedder; this run's model is {type(model).__name__}")
    return model


def embedded(evaluation: Evaluation, x: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n d"]:
    """Directions of the embeddings of x, in float64; that of an embedding of 0 is 0.

    Raises:
      ValueError: the model is no Embedder, or embeddings are no numbers.
    """
    model = embedder(evaluation.model)

    def embed(variables: Variables, batch: dict[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b d"]:
        return model.embed(variables, batch["x"])

    h = over_examples(embed, evaluation.variables, {"x": x}, 0, BATCH)
    _check_finite(np.isfinite(h).all(axis=1))
    return directions(h)


def _check_finite(finite: Bool[np.ndarray, " n"]) -> None:
    if not finite.all():
        raise ValueError(f"{np.sum(~finite)} of {len(finite)} embeddings hold numbers that are not finite")


def check_closed(metric: str, data: Dataset) -> None:
    """Raises a ValueError where the data has no labels, or a test split of classes that were not trained on."""
    check_has_labels(metric, data)
    if data.open_set:
        raise ValueError(
            f"{metric} needs a test split of the training classes, and that of {type(data).__name__} is an open set"
        )


def _check_trained(metric: str, labels: Int[np.ndarray, " n"], data: Dataset) -> None:
    check_closed(metric, data)
    if labels.min() < 0 or labels.max() >= data.num_classes:
        raise ValueError(
            f"{metric} needs a test split of the training classes, labels 0 … {data.num_classes - 1}; it has labels "
            f"{labels.min()} … {labels.max()}, so it is an open set"
        )


def of_pairs(unit_vectors: Float[np.ndarray, "n d"], pairs: Pairs, far: float) -> dict[str, float]:
    """The numbers of verification, of pairs of embeddings."""
    scores = cosines(unit_vectors[pairs.first], unit_vectors[pairs.second])
    accuracy, error = verification_accuracy(scores, pairs.same, pairs.fold)
    return {
        "verification_accuracy": accuracy,
        "verification_accuracy_stderr": error,
        f"tar_at_far_{far:g}": tar_at_far(scores, pairs.same, far),
        "auc": auc(scores, pairs.same),
        "eer": equal_error_rate(scores, pairs.same),
    }


@dataclass(frozen=True, kw_only=True)
class Verification(Metric):
    """Verification of pairs drawn from the test split, and rank-1 identification leaving one out."""

    folds: int = 10  # of different classes
    per_fold: int = 600  # pairs in a fold, half of them of one class
    far: float = 1e-2  # false accept rate at which the true accept rate is reported
    seed: int = 0  # decides the pairs
    examples: int = 10_000  # the first so many of the test split

    def __post_init__(self) -> None:
        if self.folds < 2 or self.per_fold < 2 or self.examples < 2 or not 0 <= self.seed < 2**32:
            raise ValueError(
                "Verification: folds, per_fold and examples must be at least 2 and seed in [0, 2^32); "
                f"got {self.folds}, {self.per_fold}, {self.examples} and {self.seed}"
            )
        check_far(self.far, self.folds * (self.per_fold // 2))

    def check(self, data: Dataset) -> None:
        check_has_labels("Verification", data)
        labels = data.source("test").labels
        classes = data.num_classes if labels is None else len(np.unique(labels[: self.examples]))
        if classes < 2 * self.folds and not (data.open_set and labels is None):
            raise ValueError(
                f"{self.folds} folds of different classes need {2 * self.folds} of them, and the test split of "
                f"{type(data).__name__} has {classes}; choose fewer folds (--metrics.N.folds)"
            )

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        arrays = evaluation.data.arrays("test", self.examples)
        pairs = drawn_pairs(arrays["label"], self.folds, self.per_fold, self.seed)
        u = embedded(evaluation, arrays["x"])
        return of_pairs(u, pairs, self.far) | {"rank1": rank1(u, arrays["label"])}


@dataclass(frozen=True, kw_only=True)
class PairsFile(Metric):
    """Verification of a list like LFW's pairs.txt; the numbers' names end in `_of_` and that of the list."""

    pairs: str = ""  # the list
    folder: str = ""  # has a folder of images for each name of the list
    far: float = 1e-2  # false accept rate at which the true accept rate is reported

    def _read(self) -> tuple[tuple[Path, ...], Pairs]:
        if not self.pairs or not self.folder:
            raise ValueError("PairsFile: name the list (pairs) and the folder that its images are in (folder)")
        files, pairs = read_pairs(self.pairs, self.folder)
        check_far(self.far, int(np.sum(~pairs.same)))
        return files, pairs

    def check(self, data: Dataset) -> None:
        files, pairs = self._read()
        read_images(files[:1], data.shape)
        if len(np.unique(pairs.fold)) < 2:
            raise ValueError(f"{self.pairs} has one fold; a fold's threshold is chosen on the others")

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        files, pairs = self._read()
        u = embedded(evaluation, read_images(files, evaluation.data.shape))
        return {f"{name}_of_{Path(self.pairs).stem}": value for name, value in of_pairs(u, pairs, self.far).items()}


@dataclass(frozen=True, kw_only=True)
class KNNAccuracy(Metric):
    """Fraction of the test split whose class most of the k nearest training examples have."""

    k: int = 5
    train_examples: int = 10_000  # the first so many of the training split
    examples: int = 10_000  # the first so many of the test split

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.train_examples or self.examples < 1:
            raise ValueError(
                f"KNNAccuracy: k must be at least 1 and at most train_examples, and examples at least 1; got {self.k}, "
                f"{self.train_examples} and {self.examples}"
            )

    def check(self, data: Dataset) -> None:
        check_closed("KNNAccuracy", data)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        data = evaluation.data
        train, test = data.arrays("train", self.train_examples), data.arrays("test", self.examples)
        _check_trained("KNNAccuracy", test["label"], data)
        known, asked = embedded(evaluation, train["x"]), embedded(evaluation, test["x"])
        return {"knn_accuracy": knn_accuracy(known, train["label"], asked, test["label"], self.k)}


@dataclass(frozen=True, kw_only=True)
class HeadAccuracy(Metric):
    """Fraction of the test split whose class has the head's row of the largest cosine, or the largest product w·h."""

    angles: bool = True  # cosines; else products, and the name of the number ends in `_by_product`
    examples: int = 10_000  # the first so many of the test split

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"HeadAccuracy: examples={self.examples} must be at least 1")

    def check(self, data: Dataset) -> None:
        check_closed("HeadAccuracy", data)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model, data = embedder(evaluation.model), evaluation.data
        arrays = data.arrays("test", self.examples)
        _check_trained("HeadAccuracy", arrays["label"], data)
        compared = unit if self.angles else lambda v: v

        def read(
            variables: Variables, batch: dict[str, Array], keys: Key[Array, " b"]
        ) -> tuple[Bool[Array, " b"], Bool[Array, " b"]]:
            h = model.embed(variables, batch["x"])
            w = model.head(variables)
            centres = compared(w.reshape(len(w), -1, w.shape[-1]))
            products = jnp.einsum("bd,ckd->bck", compared(h), centres, precision=jax.lax.Precision.HIGHEST)
            a_class = jnp.arange(len(w)) < data.num_classes  # a split head has rows past its classes
            found = jnp.argmax(jnp.where(a_class[None], products.max(axis=2), -jnp.inf), axis=1)
            return found == batch["label"], jnp.isfinite(h).all(axis=1)

        size = max(1, min(BATCH, PRODUCTS // (model.rows * model.centres)))
        right, finite = over_examples(read, evaluation.variables, arrays, 0, size)
        _check_finite(finite)
        return {"head_accuracy" if self.angles else "head_accuracy_by_product": float(right.mean())}
