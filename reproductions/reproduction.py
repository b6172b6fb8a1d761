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

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

import reproductions
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


class Reproduction(Protocol):
    """A module of this folder."""

    SCALES: dict[str, str | Cut | None]
    SOURCE: Source

    def rows(self, scale: str, trained: Trained | None) -> Iterator[Row]: ...

    def draw(self, rows: list[Row], figure: Figure) -> None: ...

    def headline(self, rows: list[Row]) -> str: ...


# Modules of the folder that are no reproductions.
HELPERS = (
    *(
        "all_figures",
        "baselines",
        "densities",
        "judge",
        "making",
        "page",
        "processes",
        "record",
        "reproduction",
        "runs",
    ),
)


def names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(reproductions.__path__) if info.name not in HELPERS)


def load(name: str) -> Any:
    """The module of that name, a `Reproduction`."""
    return importlib.import_module(f"reproductions.{name}")


def title(name: str) -> str:
    """The first line of the module's docstring."""
    path = Path(__file__).with_name(f"{name}.py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
