"""Error against network calls of all solvers, on densities whose denoiser is exact.

Deterministic solvers: mean distance from where the ODE really goes. Stochastic ones: error of mean and deviation for
Gaussian data. Evenly spaced log-SNR from −8 to 6, float64, no step onto data (samplers/measure.py).
"""

from collections.abc import Iterator

import matplotlib
from matplotlib.figure import Figure

from reproductions.reproduction import Row, Source
from samplers.catalogue import solvers
from samplers.check import PATHS, curves
from training.trained import Trained

SCALES = {"tiny": None, "small": None, "paper": None}
SOURCE = Source(
    paper="DPM-Solver; DPM-Solver++; UniPC; and what each solver's file names",
    arxiv="2206.00927, 2211.01095, 2302.04867",
    equation="order of convergence",
    number="FID in 10 calls 4.70 (DPM-Solver), 3.87 (UniPC), CIFAR-10",
)
WHERE = {"tiny": ("vp",), "small": ("vp",), "paper": ("vp", "ve", "cosine", "rectified")}
STEPS = {"tiny": (10, 40, 160), "small": (5, 10, 20, 40, 80, 160), "paper": (5, 10, 20, 40, 80, 160)}
SIZE = (11, 5.2)
COLOURS = matplotlib.colormaps["tab20"]


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for path in WHERE[scale]:
        for name, cls in solvers().items():
            solver = cls()
            if solver.stated_order is None:  # adaptive, or Langevin: no steps to double
                continue
            for calls, error in zip(*curves(solver, PATHS[path], STEPS[scale]), strict=True):
                kind = "stochastic" if solver.stochastic else "deterministic"
                yield {"path": path, "sampler": name, "kind": kind, "network_calls": calls, "error": error}


def draw(rows: list[Row], figure: Figure) -> None:
    path = rows[0]["path"]
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("deterministic", "stochastic"), strict=True):
        chosen = [row for row in rows if row["path"] == path and row["kind"] == kind]
        for i, name in enumerate(dict.fromkeys(row["sampler"] for row in chosen)):
            line = [row for row in chosen if row["sampler"] == name]
            x, y = [row["network_calls"] for row in line], [row["error"] for row in line]
            # ddim lies under dpmpp_1s, which is the same solver; unip's dashes let dpmpp_3m be seen under it.
            style = ("o-", "s--")[i % 2]
            axes.loglog(x, y, style, ms=3.5, lw=1.1, color=COLOURS(i), label=name)
        axes.set(xlabel="network calls", title=f"{kind}, path {path}")
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
    panels[0].set(ylabel="error at the end of the ODE, 1-D mixture (data units)")
    panels[1].set(ylabel="error of mean + standard deviation, Gaussian data")


def headline(rows: list[Row]) -> str:
    """At the most steps, whose calls differ from solver to solver."""
    last = {row["sampler"]: row for row in rows if row["path"] == rows[0]["path"]}
    told = (last[name] for name in ("ddim", "heun", "dpmpp_2m", "unipc"))
    return ", ".join(f"{row['sampler']} {row['error']:.1e} in {row['network_calls']} calls" for row in told)
