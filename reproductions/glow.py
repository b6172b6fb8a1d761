"""Glow's samples at four temperatures, and rows of images between pairs of real ones (1807.03039 figures 1, 5 and 8).

Samples are of all classes in turn. Interpolations go straight in latent space between two held-out images of one class.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metrics.flow_likelihood import FlowLikelihood
from metrics.metric import Evaluation
from metrics.neighbours import TwoSampleAccuracy
from reproductions.reproduction import Cut, Row, Source
from samplers.flow import FlowSampler, Interpolation
from training.picture import grid
from training.trained import Trained

SCALES: dict[str, str | Cut] = {
    "tiny": Cut("glow_digits", steps=500),
    "small": "glow_digits",
    "mnist": "glow_mnist",
    "paper": "glow_cifar10",
}
SOURCE = Source(
    paper="Glow: Generative Flow with Invertible 1×1 Convolutions",
    arxiv="1807.03039",
    equation="§3.1, §3.2 and §6, figures 1, 5 and 8",
    number="3.35 bits/dim, CIFAR-10",
)
TEMPERATURES = (0.5, 0.7, 0.9, 1.0)
SAMPLES = 40  # shown of each
PAIRS, BETWEEN = 5, 9
SIZE = (13, 4.9)


def pairs(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first two held-out images of each of the first classes, and the classes."""
    test = data.arrays("test", 1000)
    found = [np.flatnonzero(test["label"] == label)[:2] for label in range(PAIRS)]
    first, second = np.asarray(found).T
    return test["x"][first], test["x"][second], np.arange(PAIRS, dtype=np.int32)


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    data, model = trained.experiment.data, trained.model
    for temperature in TEMPERATURES:
        draw = lambda n, t=temperature: trained.draw(FlowSampler(temperature=t), n)[0].x  # noqa: E731
        evaluation = Evaluation(model, trained.variables, data, draw)
        accuracy = TwoSampleAccuracy(samples=min(1000, len(data.source("test"))))(evaluation)
        yield {"temperature": temperature, **accuracy, "images": draw(SAMPLES)}
    start, end, label = pairs(data)
    fraction = np.tile(np.linspace(0.0, 1.0, BETWEEN, dtype=np.float32), PAIRS)
    condition: Any = {"start": np.repeat(start, BETWEEN, 0), "end": np.repeat(end, BETWEEN, 0), "fraction": fraction}
    if getattr(model, "num_classes", 0):
        condition["label"] = np.repeat(label, BETWEEN)
    drawn, _ = trained.draw(Interpolation(), PAIRS * BETWEEN, condition)
    bits = FlowLikelihood(examples=1000)(trained.evaluation())
    yield {**bits, "images": drawn.x}


def draw(rows: list[Row], figure: Figure) -> None:
    *samples, between = rows
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    for axes, row in zip(parts[0].subplots(2, 2).flat, samples, strict=False):
        axes.imshow(grid(row["images"], columns=8))
        axes.set(title=f"temperature {row['temperature']:g}")
        axes.axis("off")
    axes = parts[1].subplots()
    axes.imshow(grid(between["images"], columns=BETWEEN))
    axes.set(title="left and right: held-out images; between: latents on a line")
    axes.title.set_fontsize(10)
    axes.axis("off")


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows[:-1]:
        yield f"temperature {row['temperature']:g}: two-sample accuracy {row['two_sample_accuracy']:.3f}"
    yield "held-out: " + ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items() if name != "images")


def headline(rows: list[Row]) -> str:
    told = next(value for name, value in rows[-1].items() if name.startswith("bits_per_dim") and "stderr" not in name)
    best = min(rows[:-1], key=lambda row: abs(row["two_sample_accuracy"] - 0.5))
    accuracy, temperature = best["two_sample_accuracy"], best["temperature"]
    return f"{told:.3f} bits/dim of held-out images; two-sample accuracy {accuracy:.3f} at temperature {temperature:g}"
