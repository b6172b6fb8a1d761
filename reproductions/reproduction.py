"""What a reproduction is: rows that are measured, and a figure drawn from the rows alone.

A module of this folder holds `SCALES` (scale → name of the experiment it trains, or None where the density is exact),
`rows(scale, trained)` and `draw(rows, figure)`. Its docstring's first line is what `--list` prints.
"""

import importlib
import pkgutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

import reproductions
from models.model import Model, Variables
from samplers.sampler import Sampler
from training.draw import Drawer
from training.experiment import Experiment
from training.mesh import Mesh
from training.run import Run, default_condition, example_batch
from training.step import named_key

Row = dict[str, Any]  # column → number or text


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to draw from."""

    experiment: Experiment
    model: Model
    variables: Variables
    step: int

    def draw(self, sampler: Sampler, n: int) -> tuple[Float[np.ndarray, "n *s"], float]:
        """n samples, and the seconds it took without compiling."""
        drawer = Drawer(self.model, sampler, self.experiment.data.shape, Mesh().build(), batch_size=500)
        began = time.perf_counter()
        x = drawer(self.variables, named_key(0, "sample"), n, default_condition(self.model, n)).x
        return x, time.perf_counter() - began - drawer.compile_seconds


class Reproduction(Protocol):
    """A module of this folder."""

    SCALES: dict[str, str | None]

    def rows(self, scale: str, trained: Trained | None) -> Iterator[Row]: ...

    def draw(self, rows: list[Row], figure: Figure) -> None: ...


def names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(reproductions.__path__) if info.name != "reproduction")


def load(name: str) -> Any:
    """The module of that name, a `Reproduction`."""
    return importlib.import_module(f"reproductions.{name}")


def trained(folder: Path) -> Trained:
    """The averaged parameters of a run."""
    run = Run(folder)
    experiment = run.experiment()
    model = experiment.resolved_model()
    variables, step = run.averaged(model, example_batch(experiment, 2), Mesh().build())
    return Trained(experiment, model, variables, step)
