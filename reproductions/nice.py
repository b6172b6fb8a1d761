"""NICE's samples, and digits of which a half is filled in by climbing the density (1410.8516 figures 5 and 6).

The log-likelihood is of x on [0, 1], in nats, over the whole test split (tiny: 1,000 of it); the paper's is 1980.50.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metrics.flow_likelihood import FlowLikelihood
from reproductions.reproduction import Cut, Row, Source
from samplers.flow import AscentInpainting, FlowSampler
from training.picture import grid
from training.trained import Trained

SCALES = {"tiny": Cut("nice_mnist", steps=150), "small": "nice_mnist"}
PAPER = 1980.50
SOURCE = Source(
    paper="NICE: Non-linear Independent Components Estimation",
    arxiv="1410.8516",
    equation="eq. 7 and §3.2 to 3.4, figures 5 and 6",
    number=f"{PAPER:.2f} nats of x on [0, 1], MNIST's test split, best of 1,500 epochs",
)
SAMPLES, FILLED = 100, 10
EXAMPLES = {"tiny": 1000, "small": 10_000}
CLIMBS = {"tiny": 100, "small": 1000}  # steps up the density
SIZE = (12, 6.4)


def masks(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What is known: 1 there, [H, W, 1]."""
    height, width, _ = shape
    rows, columns = np.indices((height, width))
    known = {
        "top": rows < height // 2,
        "left": columns < width // 2,
        "middle": abs(rows - height / 2 + 0.5) < height / 4,
        "random": np.random.default_rng(0).random((height, width)) < 0.25,
    }
    return {name: mask[..., None].astype(np.float32) for name, mask in known.items()}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    data, evaluation = trained.experiment.data, trained.evaluation()
    for split in ("test", "train"):
        metric = FlowLikelihood(examples=EXAMPLES[scale], batch_size=500, split=split)
        numbers = {name.removesuffix("_of_train"): value for name, value in metric(evaluation).items()}
        yield {"what": f"log-likelihood, {split} split", **numbers, "paper": PAPER if split == "test" else ""}
    for temperature in (1.0, 0.7):
        drawn = trained.draw(FlowSampler(temperature=temperature), SAMPLES)[0].x
        yield {"what": "samples", "temperature": temperature, "images": drawn}
    x = data.arrays("test", FILLED)["x"]
    for name, mask in masks(data.shape).items():
        condition = {"known": x, "mask": np.broadcast_to(mask, x.shape)}
        drawn, seconds = trained.draw(AscentInpainting(steps=CLIMBS[scale], noise=0.0), FILLED, condition)
        error = float(np.sqrt(np.mean((drawn.x - x) ** 2 / np.mean(1.0 - mask))))
        shown = np.concatenate([np.where(mask > 0, x, 0.0), drawn.x])
        yield {"what": f"filled in, {name} known", "error": error, "seconds": round(seconds, 1), "images": shown}


def draw(rows: list[Row], figure: Figure) -> None:
    samples = [row for row in rows if row["what"] == "samples"]
    filled = [row for row in rows if row["what"].startswith("filled in")]
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    for axes, row in zip(parts[0].subplots(1, 2), samples, strict=True):
        axes.imshow(grid(row["images"][:70], columns=7))
        axes.set(title=f"samples, temperature {row['temperature']:g}")
        axes.axis("off")
    for axes, row in zip(parts[1].subplots(len(filled), 1), filled, strict=True):
        axes.imshow(grid(row["images"], columns=FILLED))
        axes.set_title(f"{row['what']}, and below it what the density climbs to", fontsize=9)
        axes.axis("off")


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows[:2]:
        yield (
            f"{row['what']}: {row['nats_on_unit_cube']:.1f} ± {row['nats_on_unit_cube_stderr']:.1f} nats, "
            f"{row['bits_per_dim']:.3f} bits/dim"
        )
    yield f"the paper's test split: {PAPER} nats"


def headline(rows: list[Row]) -> str:
    return f"{rows[0]['nats_on_unit_cube']:.1f} ± {rows[0]['nats_on_unit_cube_stderr']:.1f} nats, test split"
