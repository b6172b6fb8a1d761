"""Error against network calls of all solvers, on densities whose denoiser is exact.

Deterministic solvers: mean distance from where the ODE really goes. Stochastic ones: error of mean and deviation for
Gaussian data. Evenly spaced log-SNR from −8 to 6, float64, no step onto data (samplers/measure.py).
"""

from collections.abc import Iterator

import matplotlib
from matplotlib.figure import Figure

from reproductions.reproduction import Row, Trained
from samplers.catalogue import solvers
from samplers.check import PATHS, curves

SCALES = {"tiny": None, "small": None, "paper": None}
WHERE = {"tiny": ("vp",), "small": ("vp", "rectified"), "paper": ("vp", "ve", "cosine", "rectified")}
SIZE = (11, 5.2)
COLOURS = matplotlib.colormaps["tab20"]


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for path in WHERE[scale]:
        for name, cls in solvers().items():
            solver = cls()
            if solver.stated_order is None:  # adaptive, or Langevin: no steps to double
                continue
            for calls, error in zip(*curves(solver, PATHS[path]), strict=True):
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
