"""Score SDE's table 1: predictors, correctors, both and the ODE on a VE path (Song et al. 2011.13456).

    P     a predictor: ancestral, reverse diffusion, or the probability flow in the same steps
    PC    as many predictor as corrector steps, which are Langevin's
    C     two Langevin steps at each noise level, and no predictor
    ODE   the probability flow by dopri5 (the paper's §4.3), at noise levels of its own choice

The paper's numbers are FID on CIFAR-10 by Inception features (VE SDE, P1000, P2000, PC1000 and C2000). Ours are Fréchet
distances between 1,000 samples a cell and the training split, in raw pixels and in the features of
metrics/classifier.py, by the averaged parameters of one run: compare shapes, not numbers. The noise levels are the
paper's, evenly spaced in t, so in log σ.

The paper searches r for each cell. Here PC has two, the paper's 0.16 for CIFAR-10 and 0.02, a smaller one. C has
r = √(c·log(σ₀/σ_N)/(2·calls)), so that c relaxations, each of 1/(2r²) calls at equilibrium (samplers/langevin.py), pass
while σ falls e-fold. A chain of width d follows only if c ≥ 4, where (d/σ)⁴ − c(d/σ)² + c = 0 has a solution; at c = 6
it is 13 % too wide. A larger r is nearer for a Gaussian, and not on data.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from models.denoiser import Denoiser
from paths.grids import Uniform
from reproductions.judge import Distances
from reproductions.reproduction import Cut, Row, Source
from samplers.adaptive import Dopri5
from samplers.ddpm import DDPM
from samplers.diffusion import Diffusion
from samplers.langevin import Langevin
from samplers.pc import PC
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.solver import Solver
from training.trained import Trained

SCALES = {"tiny": Cut("digits_ve", steps=300), "small": "mnist_ve", "paper": "cifar10_ve"}
SOURCE = Source(
    paper="Score-Based Generative Modeling through Stochastic Differential Equations",
    arxiv="2011.13456",
    equation="table 1, algorithms 1 to 5",
    number="FID 4.79 (P1000) and 3.60 (PC1000, reverse diffusion), CIFAR-10, VE",
)
PREDICTORS = {
    "ancestral": DDPM(),
    "reverse diffusion": ReverseDiffusion(),
    "probability flow": ReverseDiffusion(strength=0.0),
}
CALLS = {"tiny": (20, 200), "small": (50, 200, 1000), "paper": (50, 200, 1000, 2000)}  # of a sample
SNR, PAPERS_SNR = 0.02, 0.16
RELAXATIONS = 6.0  # c
# (sampler, predictor, network calls) → FID on CIFAR-10
PAPER = {
    ("P", "ancestral", 1000): 4.98,
    ("P", "ancestral", 2000): 4.88,
    ("PC", "ancestral", 2000): 3.62,
    ("P", "reverse diffusion", 1000): 4.79,
    ("P", "reverse diffusion", 2000): 4.74,
    ("PC", "reverse diffusion", 2000): 3.60,
    ("P", "probability flow", 1000): 15.41,
    ("P", "probability flow", 2000): 10.54,
    ("PC", "probability flow", 2000): 3.51,
    ("C", "none", 2000): 20.43,
}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    assert isinstance(trained.model, Denoiser)
    distances = Distances(trained, scale)
    path = trained.model.path

    def cell(kind: str, predictor: str, calls: int, solver: Solver, snr: float | str = "") -> Row:
        steps = calls if kind in ("P", "ODE") else calls // 2
        drawn, seconds = trained.draw(Diffusion(solver=solver, grid=Uniform(), steps=steps), distances.samples)
        made = solver.network_calls(steps) if drawn.nfe is None else float(drawn.nfe.mean())
        found: Row = {"sampler": kind, "predictor": predictor, "snr": snr, "network_calls": made}
        paper = PAPER.get((kind, predictor, calls), "")
        measured = {"paper_fid_cifar10": paper, "seconds": seconds, "samples": distances.samples}
        return found | distances(drawn.x) | measured

    if (real := distances.of_test_images()) is not None:
        yield {"sampler": "test images"} | real
    yield cell("ODE", "none", 1, Dopri5())
    for predictor, solver in PREDICTORS.items():
        for calls in CALLS[scale]:
            yield cell("P", predictor, calls, solver)
    for predictor, solver in PREDICTORS.items():
        for snr in (SNR, PAPERS_SNR) if predictor == "reverse diffusion" else (SNR,):
            for calls in CALLS[scale]:
                yield cell("PC", predictor, calls, PC(predictor=solver, snr=snr), snr)
    folds = float(np.log(path.sigma(np.asarray(1.0)) / path.sigma(np.asarray(path.t_min))))
    for calls in CALLS[scale]:
        snr = float(np.sqrt(RELAXATIONS * folds / (2.0 * calls)))
        yield cell("C", "none", calls, Langevin(snr=snr, corrector_steps=2), round(snr, 3))


SIZE = (13, 5.0)
COLOURS = {"ancestral": "C0", "reverse diffusion": "C1", "probability flow": "C2", "none": "C3"}
STYLES = {"P": "o-", "PC": "s--", "C": "v-", "ODE": "*"}
TICKS = (20, 50, 100, 200, 500, 1000, 2000)
LEVELS = [mantissa * 10**power for power in range(-1, 4) for mantissa in (1, 2, 3, 5, 7)]


def label(row: Row) -> str:
    if row["sampler"] in ("ODE", "C"):
        return {"ODE": "ODE by dopri5", "C": "C: Langevin alone"}[row["sampler"]]
    r = f", r = {row['snr']}" if row["sampler"] == "PC" else ""
    return f"{row['sampler']}: {row['predictor']}{r}"


def draw(rows: list[Row], figure: Figure) -> None:
    panels = figure.subplots(1, 3)
    cells = [row for row in rows if row["sampler"] != "test images"]
    for axes, (column, title) in zip(panels, Distances.COLUMNS.items(), strict=False):
        for name in dict.fromkeys(map(label, cells)):
            line = [row for row in cells if label(row) == name]
            kind, style = line[0]["sampler"], STYLES[line[0]["sampler"]]
            style = "D:" if kind == "PC" and line[0]["snr"] == PAPERS_SNR else style
            x, y = [row["network_calls"] for row in line], [row[column] for row in line]
            colour, size = COLOURS[line[0]["predictor"]], 11 if kind == "ODE" else 4
            axes.loglog(x, y, style, color=colour, ms=size, lw=1.2, label=name)
        for real in (row for row in rows if row["sampler"] == "test images"):
            axes.axhline(real[column], color="grey", ls=":", lw=1, label="real test images")
        axes.set(title=title)
    for kind, predictor in dict.fromkeys((kind, predictor) for kind, predictor, _ in PAPER):
        line = {calls: fid for (*which, calls), fid in PAPER.items() if which == [kind, predictor]}
        name = "C: Langevin alone" if kind == "C" else f"{kind}: {predictor}"
        panels[2].loglog([*line], [*line.values()], STYLES[kind], color=COLOURS[predictor], ms=5, lw=1.2, label=name)
    panels[2].set(title="the paper: FID, CIFAR-10, VE")
    for axes in panels:
        axes.set(xlabel="network calls of a sample")
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        axes.set_xticks(ticks := [v for v in TICKS if left <= v <= right], [str(v) for v in ticks])
        axes.set_yticks(levels := [v for v in LEVELS if low <= v <= high], [f"{v:g}" for v in levels])
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    panels[0].set(ylabel="distance to the training split")


def summary(rows: list[Row]) -> Iterator[str]:
    columns = Distances.COLUMNS | {"paper_fid_cifar10": "the paper: FID, CIFAR-10"}
    yield f"{'':34}{'calls':>7}" + "".join(f"{title.removeprefix('ours: '):>30}" for title in columns.values())
    for row in rows:
        values = [row.get(column, "") for column in columns]
        written = "".join(f"{value if value == '' else format(value, '.3f'):>30}" for value in values)
        real = row["sampler"] == "test images"
        yield f"{'real test images' if real else label(row):34}{row.get('network_calls', 0):7.0f}{written}"


def headline(rows: list[Row]) -> str:
    """The best of each kind, whatever its calls."""
    best = {}
    for row in rows[::-1]:
        kept = best.setdefault(row["sampler"], row)
        if row["frechet_classifier"] < kept["frechet_classifier"]:
            best[row["sampler"]] = row
    told = (f"{kind} {best[kind]['frechet_classifier']:.2f}" for kind in ("P", "PC", "C", "ODE"))
    return f"best Fréchet distances in classifier features: {', '.join(told)}"
