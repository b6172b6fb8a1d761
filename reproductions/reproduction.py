"""What a reproduction is: rows that are measured, and a figure drawn from the rows alone.

A module of this folder holds `SCALES` (scale → name of the experiment it trains, or None where the density is exact or
`rows` makes several runs of its own by `made`), `rows(scale, trained)` and `draw(rows, figure)`, where it moves
`animation(rows)`, its frames, and where it reads a text file `TAKES_DATA`: `rows` is then given its path as `data`.
What a row holds as an array is for the figure and is left out of the table. Its docstring's first line is what `--list`
prints.
"""

import importlib
import math
import pkgutil
import time
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
from models.model import Model, Variables
from samplers.sampler import Sampler
from training.cli import load_experiment
from training.draw import Drawer, Drawn
from training.errors import UserError
from training.experiment import Experiment
from training.loop import train
from training.mesh import Mesh
from training.run import Run, default_condition, example_batch
from training.step import named_key

Row = dict[str, Any]  # column → number, text or, for the figure alone, array


def in_table(row: Row) -> Row:
    """The columns that are printed and written."""
    return {column: value for column, value in row.items() if not isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to draw from."""

    experiment: Experiment
    model: Model
    variables: Variables
    step: int

    def draw(
        self, sampler: Sampler, n: int, condition: Any = None, trajectory: bool = False, variables: Any = None
    ) -> tuple[Drawn, float]:
        """n samples, and the seconds it took without compiling. By default all classes in turn."""
        drawer = Drawer(self.model, sampler, self.experiment.data.shape, Mesh().build(), batch_size=500)
        began = time.perf_counter()
        condition = default_condition(self.model, self.experiment.data, n) if condition is None else condition
        drawn = drawer(variables or self.variables, named_key(0, "sample"), n, condition, trajectory)
        return drawn, time.perf_counter() - began - drawer.compile_seconds


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
        self.samples = 50_000 if scale == "paper" else max(1000, pixels + 1)  # to draw for a figure
        self.enough_test_images = len(self.test) > pixels

    def __call__(self, x: Float[np.ndarray, "n *s"]) -> Row:
        found: Row = {"frechet_pixels": frechet_distance(x, self.train)}
        return found | {"frechet_classifier": frechet_distance(x, self.train, self.judge.features)}

    def of_test_images(self) -> Row | None:
        """What real images of the test split are at; None where they are too few."""
        return self(self.test) if self.enough_test_images else None


class Reproduction(Protocol):
    """A module of this folder."""

    SCALES: dict[str, str | None]

    def rows(self, scale: str, trained: Trained | None) -> Iterator[Row]: ...

    def draw(self, rows: list[Row], figure: Figure) -> None: ...


def names() -> list[str]:
    return sorted(
        info.name
        for info in pkgutil.iter_modules(reproductions.__path__)
        if info.name not in ("densities", "reproduction")
    )


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


def trained(folder: Path) -> Trained:
    """The averaged parameters of a run."""
    run = Run(folder)
    experiment = run.experiment()
    model = experiment.resolved_model()
    variables, step = run.averaged(model, example_batch(experiment), Mesh().build())
    return Trained(experiment, model, variables, step)
