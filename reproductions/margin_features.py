"""MNIST in a plane: two-dimensional embeddings under margins, a smaller one over a larger one, side by side.

L-Softmax's figure 2 (1612.02295) and SphereFace's figure 2 (1704.08063): the larger the margin, the narrower a class's
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

from data.images import TFDS
from losses.identification import Identification
from losses.margin_softmax import ArcFace, ASoftmax, CosFace, LSoftmax, Margin, NormFace
from metrics.embeddings import embedded
from reproductions.reproduction import Row, Source
from reproductions.runs import in_runs, made, shortened
from training.measure import evaluation_of
from training.trained import Trained, trained

PANELS: tuple[tuple[str, str, Margin | None], ...] = (  # title, experiment, another margin than its own
    ("softmax", "softmax", None),
    ("L-Softmax, m = 2", "lsoftmax", None),
    ("A-Softmax, m = 2", "asoftmax", ASoftmax(m=2, decay=0.5, least=1.0)),
    ("AM-Softmax, m = 0.05", "amsoftmax", CosFace(scale=16.0, m=0.05)),
    ("ArcFace, m = 0.1", "arcface", ArcFace(scale=16.0, m=0.1, warmup=500)),
    ("NormFace", "softmax", NormFace(scale=16.0)),
    ("L-Softmax, m = 4", "lsoftmax", LSoftmax(m=4, decay=2.0)),
    ("A-Softmax, m = 4", "asoftmax", None),
    ("AM-Softmax, m = 0.15", "amsoftmax", None),
    ("ArcFace, m = 0.35", "arcface", None),
)
SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Large-Margin Softmax Loss; SphereFace",
    arxiv="1612.02295, 1704.08063",
    equation="figure 2 of each",
)
STEPS, DATA = 100, TFDS(name="mnist", test="test[:2000]")  # of a cut training
FEWER = ("softmax", "L-Softmax, m = 2", "ArcFace, m = 0.1", "NormFace", "L-Softmax, m = 4", "ArcFace, m = 0.35")
SHOWN = 4000  # embeddings drawn of each
SIZE = (14, 6.6)


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
    for title, name, margin in PANELS:
        if scale == "tiny" and title not in FEWER:
            continue
        name = f"margin_mnist2d_{name}"
        changes: dict[str, Any] = {"loss": Identification(margin=margin)} if margin else {}
        changes |= {**shortened(name, STEPS), "data": DATA} if scale == "tiny" else {}
        folder = made(name, in_runs(name + (f"_{_plain(title)}" if margin else ""), scale), **changes)
        run, summary = trained(folder), json.loads((folder / "summary.json").read_text())
        model: Any = run.model
        loss: Any = run.experiment.loss
        test = run.experiment.data.arrays("test", 10_000)
        evaluation = evaluation_of(run.model, run.variables, run.experiment.data, lambda n: np.zeros(0))
        h = np.asarray(model.embed(run.variables, jnp.asarray(test["x"][:SHOWN])))
        found = gaps(embedded(evaluation, test["x"]), test["label"])
        # A class is told as its loss tells it: by w·h, or by the angle where w was never anything but a direction.
        right = summary["head_accuracy" if loss.margin.UNIT_WEIGHTS else "head_accuracy_by_product"]
        row: Row = {"loss": title, "accuracy": right}
        row |= {name: summary[name] for name in ("intra_class_angle", "smallest_inter_class_angle")}
        row |= {"gap": float(found.mean()), "smallest_gap": float(found.min()), "seconds": summary["seconds"]}
        yield row | {"h": h, "label": test["label"][:SHOWN], "head": np.asarray(model.head(run.variables))}


def _plain(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter == ".")


def draw(rows: list[Row], figure: Figure) -> None:
    panels = figure.subplots(2, len(rows) // 2).ravel()
    for axes, row in zip(panels, rows, strict=True):
        h = row["h"]
        reach = 1.05 * np.quantile(np.linalg.norm(h, axis=1), 0.999)
        axes.scatter(*h.T, c=row["label"], cmap="tab10", s=1.5, lw=0, alpha=0.6)
        for c, w in enumerate(row["head"]):
            end = 0.95 * reach * w / np.linalg.norm(w)
            axes.plot([0, end[0]], [0, end[1]], color=f"C{c}", lw=0.8)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        angles = f"within {row['intra_class_angle']:.1f}°, gap {row['gap']:.1f}°"
        axes.set_title(f"{row['loss']}\n{100 * row['accuracy']:.2f} % right; {angles}", fontsize=9)


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':22}{'right':>9}{'within':>9}{'closest':>9}{'gap':>8}{'least':>8}{'seconds':>9}"
    for row in rows:
        right = f"{100 * row['accuracy']:7.2f} %{row['intra_class_angle']:8.2f}°"
        apart = f"{row['smallest_inter_class_angle']:8.1f}°{row['gap']:7.1f}°{row['smallest_gap']:7.1f}°"
        yield f"{row['loss']:22}{right}{apart}{row['seconds']:9.0f}"


def headline(rows: list[Row]) -> str:
    gap = {row["loss"]: f"{row['gap']:.1f}°" for row in rows}
    told = (f"{name} {gap[name]}" for name in ("softmax", "NormFace", "L-Softmax, m = 4", "ArcFace, m = 0.35"))
    return f"mean gap between neighbours' sectors: {', '.join(told)}"
