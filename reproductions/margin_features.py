"""MNIST in a plane: two-dimensional embeddings under five losses, side by side.

L-Softmax's figure 2 (1612.02295) and SphereFace's figure 3 (1704.08063): the larger the margin, the narrower a class's
sector and the wider the gaps between sectors. The `margin_mnist2d_` experiments: one network, one optimiser, the same
steps. Angles are of the 10,000 test images: an embedding's to its class's mean direction, and the smallest between two
classes' mean directions (ten directions of a plane are 36 degrees apart at best). `gap` is the empty sector between two
neighbouring classes, the 90 % of each nearest its mean direction taken; the mean of the ten.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from metrics.embeddings import embedded
from reproductions.reproduction import Row, Trained, made, trained
from training.loop import evaluation_of

LOSSES = ("softmax", "lsoftmax", "asoftmax", "amsoftmax", "arcface")
TITLES = ("softmax", "L-Softmax, m = 2", "A-Softmax, m = 4", "AM-Softmax, m = 0.35", "ArcFace, m = 0.35")
SCALES = {"small": None}
SHOWN = 4000  # embeddings drawn of each
SIZE = (14, 6.4)


def gaps(u: Float[np.ndarray, "n 2"], label: Int[np.ndarray, " n"], part: float = 0.9) -> Float[np.ndarray, " classes"]:
    """Degrees between each class's sector and the next one's, around the circle; below 0 where they overlap."""
    classes = np.unique(label)
    means = np.stack([u[label == c].mean(axis=0) for c in classes])
    centre = np.degrees(np.arctan2(means[:, 1], means[:, 0]))
    angle = np.degrees(np.arctan2(u[:, 1], u[:, 0]))
    half = []
    for c, middle in zip(classes, centre, strict=True):
        half.append(np.quantile(np.abs((angle[label == c] - middle + 180.0) % 360.0 - 180.0), part))
    order = np.argsort(centre)
    centre, width = centre[order], np.asarray(half)[order]
    return (np.roll(centre, -1) - centre) % 360.0 - width - np.roll(width, -1)


def rows(scale: str, trained_: Trained | None) -> Iterator[Row]:
    for loss in LOSSES:
        folder = made(f"margin_mnist2d_{loss}")
        run, summary = trained(folder), json.loads((folder / "summary.json").read_text())
        test = run.experiment.data.arrays("test", 10_000)
        evaluation = evaluation_of(run.model, run.variables, run.experiment.data, lambda n: np.zeros(0))
        model: Any = run.model
        h = np.asarray(model.embed(run.variables, jnp.asarray(test["x"][:SHOWN])))
        found = gaps(embedded(evaluation, test["x"]), test["label"])
        row: Row = {"loss": loss, "accuracy": summary["head_accuracy_by_product"], "by_angle": summary["head_accuracy"]}
        row |= {name: summary[name] for name in ("intra_class_angle", "smallest_inter_class_angle")}
        row |= {"gap": float(found.mean()), "smallest_gap": float(found.min()), "seconds": summary["seconds"]}
        yield row | {"h": h, "label": test["label"][:SHOWN], "head": np.asarray(model.head(run.variables))}


def draw(rows: list[Row], figure: Figure) -> None:
    panels = figure.subplots(2, len(rows))
    for column, (row, title) in enumerate(zip(rows, TITLES, strict=True)):
        h, u = row["h"], row["h"] / np.linalg.norm(row["h"], axis=1, keepdims=True)
        for axes, points in zip(panels[:, column], (h, u), strict=True):
            axes.scatter(*points.T, c=row["label"], cmap="tab10", s=1.5, lw=0, alpha=0.6)
            reach = 1.05 * np.abs(points).max()
            for c, w in enumerate(row["head"]):
                end = 0.93 * reach * w / np.linalg.norm(w)
                axes.plot([0, end[0]], [0, end[1]], color=f"C{c}", lw=0.8)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        angles = f"within {row['intra_class_angle']:.1f}°, gap {row['gap']:.1f}°"
        panels[0, column].set_title(f"{title}\n{100 * row['accuracy']:.2f} % right; {angles}", fontsize=9)
    panels[0, 0].set_ylabel("embeddings")
    panels[1, 0].set_ylabel("directions")


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':12}{'right':>9}{'by angle':>10}{'within':>9}{'closest':>9}{'gap':>8}{'least':>8}{'seconds':>9}"
    for row in rows:
        right = f"{100 * row['accuracy']:7.2f} %{100 * row['by_angle']:8.2f} %{row['intra_class_angle']:8.2f}°"
        apart = f"{row['smallest_inter_class_angle']:8.1f}°{row['gap']:7.1f}°{row['smallest_gap']:7.1f}°"
        yield f"{row['loss']:12}{right}{apart}{row['seconds']:9.0f}"
