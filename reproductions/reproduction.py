"""What a reproduction is: rows that are measured, and a figure drawn from the rows alone.

A module of this folder holds

    SCALES                scale → the experiment it trains, by name or as a `Cut` of it; None where the density is exact
                          or `rows` makes several runs of its own by `made`. `tiny` is the figure from trainings cut so
                          far that it takes a minute on two CPU cores, `small` what README and docs show, `mnist` that
                          of MNIST where `small` is of digits, `paper` the paper's data and settings
    SOURCE                the paper, its equation and its number
    rows(scale, trained)  what is measured; given a text file's path as `data`, too, where the module `TAKES_DATA`
    draw(rows, figure)    and, where it moves, `animation(rows)`: its frames
    headline(rows)        our number in a line; `summary(rows)` has more of them, where there is more to say

and where it looks at what the others have trained, `LAST = True`. What a row holds as an array is for the figure and is
left out of the table. Its docstring's first line is what `--list` prints.
"""

import importlib
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

import reproductions
from metrics.classifier import NAME, classifier
from metrics.frechet import frechet_distance
from training.cli import load_experiment
from training.errors import UserError
from training.experiment import Experiment
from training.loop import train
from training.run import Run
from training.trained import Trained

Row = dict[str, Any]  # column → number, text or, for the figure alone, array


def in_table(row: Row) -> Row:
    """The columns that are printed and written."""
    return {column: value for column, value in row.items() if not isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class Source:
    """What a figure is compared with."""

    paper: str
    arxiv: str  # ids, separated by ", "; empty where it is not there
    equation: str  # or its figure, table or section
    number: str = ""  # the paper's own, where it has one to hold ours against


@dataclass(frozen=True)
class Cut:
    """An experiment's training, cut short, neither drawn nor measured on the way; modules share its run."""

    experiment: str
    steps: int

    def __str__(self) -> str:
        return f"{self.experiment}, cut to {self.steps} steps"

    def made(self) -> Path:
        """Its run, trained to the end if it is not."""
        changes = shortened(self.experiment, self.steps) | UNSEEN
        return made(self.experiment, in_runs(self.experiment, "tiny"), **changes)


UNSEEN: dict[str, Any] = {"metrics": (), "sample_every": 0}  # what a run need not have that nobody looks at by itself


def shortened(of: str | Experiment, steps: int) -> dict[str, Any]:
    """An experiment's fields in so few steps: its warm-up and its averages are the same part of them."""
    experiment = load_experiment(of) if isinstance(of, str) else of
    part = steps / experiment.steps
    optimizer = replace(experiment.optimizer, warmup=round(part * experiment.optimizer.warmup))
    return {"steps": steps, "optimizer": optimizer, "ema": max(0.0, 1.0 - (1.0 - experiment.ema) / part)}


def in_runs(name: str, scale: str) -> Path:
    """A run's folder. What `tiny` cuts short has one of its own, and one that `train.py NAME --tiny` does not take."""
    return Path("runs") / (f"{name}_cut" if scale == "tiny" else name)


class Distances:
    """How far samples are from the training split, in raw pixels and in the features of metrics/classifier.py."""

    COLUMNS: ClassVar[dict[str, str]] = {
        "frechet_pixels": "ours: Fréchet, raw pixels",
        "frechet_classifier": "ours: Fréchet, classifier features",
    }

    def __init__(self, trained: Trained, scale: str) -> None:
        data = trained.experiment.data
        self.judge = classifier(data)
        print(f"features: {NAME}, {100 * self.judge.accuracy:.1f} % right on the test split")
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


class Reproduction(Protocol):
    """A module of this folder."""

    SCALES: dict[str, str | Cut | None]
    SOURCE: Source

    def rows(self, scale: str, trained: Trained | None) -> Iterator[Row]: ...

    def draw(self, rows: list[Row], figure: Figure) -> None: ...

    def headline(self, rows: list[Row]) -> str: ...


# Modules of the folder that are no reproductions.
HELPERS = ("densities", "page", "processes", "record", "reproduction")


def names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(reproductions.__path__) if info.name not in HELPERS)


def load(name: str) -> Any:
    """The module of that name, a `Reproduction`."""
    return importlib.import_module(f"reproductions.{name}")


def made(name: str, folder: Path | None = None, **changes: Any) -> Path:
    """The run of an experiment with these fields changed, in `folder` (runs/NAME); trained to the end if it is not."""
    return completed(replace(load_experiment(name), **changes), folder or Path("runs") / name)


def completed(experiment: Experiment, folder: Path) -> Path:
    """The run of an experiment in `folder`; trained to the end if it is not."""
    experiment = experiment.pinned()
    if not (folder / "summary.json").is_file():
        print(f"training in {folder}", flush=True)
        train(experiment, folder)
    elif Run(folder).experiment() != experiment:
        raise UserError(
            f"{folder} holds a run with other settings than today's; move it away, or name it by --run where one can be"
        )
    return folder


def run_of(wanted: str | Cut) -> Path:
    """The run of what a scale trains."""
    return wanted.made() if isinstance(wanted, Cut) else made(wanted)
