"""Classifier-free guidance: what the samples' classes gain and their diversity loses as the scale rises (2207.12598).

Samples of a class-conditional flow, all classes in turn. Class accuracy: how often a classifier that was trained on
real images (metrics/classifier.py; its own accuracy on held-out ones is printed) reads the class that was asked for.
Diversity: mean distance between two samples of one class, in raw pixels, beside real images' own.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metrics.class_accuracy import read_as
from metrics.classifier import classifier
from metrics.features import flat
from metrics.frechet import frechet_distance
from metrics.neighbours import squared_distances
from paths.grids import Uniform
from reproductions.reproduction import Cut, Row, Source
from samplers.diffusion import Diffusion
from samplers.guidance import ClassifierFree
from samplers.heun import Heun
from training.picture import grid
from training.trained import Trained

CUT = Cut("digits_flow", steps=100)
SCALES = {"tiny": CUT, "small": "digits_flow", "mnist": "mnist_flow", "paper": "cifar10_dit"}
SOURCE = Source(paper="Classifier-Free Diffusion Guidance", arxiv="2207.12598", equation="eq. 6")
ALL_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
WEIGHTS = {"tiny": (0.0, 1.0, 3.0, 6.0)}  # and at other scales all
SAMPLES = {"tiny": 200}  # and at other scales 2,000
SHOWN = (0.0, 1.0, 3.0, 6.0)  # scales of the rows of pictures
SIZE = (13, 7)


def sampler(scale: float) -> Diffusion:
    return Diffusion(solver=Heun(), grid=Uniform(), steps=20, transforms=(ClassifierFree(scale=scale),))


def diversity(x: np.ndarray, label: np.ndarray) -> float:
    """Mean distance of two different examples of one class, over classes."""
    means = []
    for value in np.unique(label):
        part = flat(x[label == value])
        distances = np.sqrt(squared_distances(part, part))
        means.append(distances.sum() / (len(part) * (len(part) - 1)))
    return float(np.mean(means))


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    data = trained.experiment.data
    judge = classifier(data)
    train, test = data.arrays("train", 60_000), data.arrays("test", 2000)
    real = diversity(test["x"], test["label"])
    yield {"guidance": "test images", "class_accuracy": judge.accuracy, "diversity": real}
    samples = SAMPLES.get(scale, 2000)
    asked = np.arange(samples) % data.num_classes
    for weight in WEIGHTS.get(scale, ALL_WEIGHTS):
        x = trained.draw(sampler(weight), samples)[0].x
        right = read_as(judge, x, asked)
        distance = frechet_distance(x, train["x"], judge.features)
        row: Row = {"guidance": weight, "class_accuracy": right, "diversity": diversity(x, asked)}
        yield row | {"frechet_classifier": distance, "samples": samples, "images": x[: 2 * data.num_classes]}


def draw(rows: list[Row], figure: Figure) -> None:
    real, cells = rows[0], rows[1:]
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    top, bottom = parts
    titles = {
        "class_accuracy": "read as the class asked for",
        "diversity": "distance within a class, raw pixels",
        "frechet_classifier": "Fréchet distance, classifier features",
    }
    for axes, (column, title) in zip(top.subplots(1, 3), titles.items(), strict=True):
        axes.plot([row["guidance"] for row in cells], [row[column] for row in cells], "o-", ms=4)
        if column in real:
            axes.axhline(real[column], color="grey", ls=":", lw=1, label="held-out images")
            axes.legend(fontsize=8)
        axes.set(xlabel="guidance scale (1: none)", title=title)
        axes.grid(True, alpha=0.3)
    shown = [row for row in cells if row["guidance"] in SHOWN]
    for axes, row in zip(bottom.subplots(1, len(SHOWN)), shown, strict=True):
        axes.imshow(grid(row["images"], columns=5))
        axes.set(title=f"scale {row['guidance']:g}")
        axes.axis("off")


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'guidance':>12}{'accuracy':>12}{'diversity':>12}{'Fréchet':>12}"
    for row in rows:
        numbers = [row.get(c) for c in ("class_accuracy", "diversity", "frechet_classifier")]
        yield f"{row['guidance']!s:>12}" + "".join(f"{'–' if v is None else format(v, '.3f'):>12}" for v in numbers)


def headline(rows: list[Row]) -> str:
    cell = {row["guidance"]: row for row in rows}
    some = {weight: cell[weight] for weight in (1.0, 3.0)}
    told = (f"{100 * row['class_accuracy']:.1f} % and {row['diversity']:.2f} at scale {w:g}" for w, row in some.items())
    return f"read as the class asked for, and distance within a class: {', '.join(told)}"
