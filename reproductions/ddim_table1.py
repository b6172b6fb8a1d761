"""DDIM's table 1: quality against steps for η = 0 … 1 and σ̂ (Song et al. 2010.02502).

The paper's numbers are FID on CIFAR-10 by Inception features. Ours are Fréchet distances between 1,000 samples a cell
and the training split, in raw pixels and in the features of metrics/classifier.py: compare shapes, not numbers. The
grid is that of the paper's code, whose last time is step 1: what noise is there then stays in the picture.
"""

from collections.abc import Iterator

from matplotlib.figure import Figure

from paths.grids import Leading
from reproductions.judge import Distances
from reproductions.reproduction import Cut, Row, Source
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from training.trained import Trained

SCALES = {"tiny": Cut("digits_ddpm", steps=200), "small": "mnist_mlp", "paper": "cifar10_ddpm"}
SOURCE = Source(
    paper="Denoising Diffusion Implicit Models",
    arxiv="2010.02502",
    equation="eq. 12 and 16, table 1",
    number="FID 13.36 in 10 steps, 4.04 in 1000 (η = 0), CIFAR-10",
)
ALL_STEPS = (10, 20, 50, 100, 1000)
STEPS = {"tiny": ALL_STEPS[:3], "small": ALL_STEPS, "paper": ALL_STEPS}
SOLVERS = {
    "0.0": DDIM(eta=0.0),
    "0.2": DDIM(eta=0.2),
    "0.5": DDIM(eta=0.5),
    "1.0": DDIM(eta=1.0),
    "σ̂": DDIM(eta=1.0, hat=True),
}
PAPER = {
    "0.0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "1.0": (41.07, 18.36, 8.01, 5.78, 4.73),
    "σ̂": (367.43, 133.37, 32.72, 9.99, 3.17),
}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    distances = Distances(trained, scale)
    if (real := distances.of_test_images()) is not None:
        yield {"eta": "test images", "steps": 0} | real
    for eta, solver in SOLVERS.items():
        for steps, paper in zip(STEPS[scale], PAPER[eta], strict=False):
            drawn, seconds = trained.draw(Diffusion(solver=solver, grid=Leading(), steps=steps), distances.samples)
            cell = {"eta": eta, "steps": steps} | distances(drawn.x)
            yield cell | {"paper_fid_cifar10": paper, "seconds": seconds, "samples": distances.samples}


COLUMNS = Distances.COLUMNS | {"paper_fid_cifar10": "the paper: FID, CIFAR-10"}
SIZE = (13, 4.4)
LEVELS = [mantissa * 10**power for power in range(4) for mantissa in (1, 2, 3, 5, 7)]


def draw(rows: list[Row], figure: Figure) -> None:
    panels = figure.subplots(1, 3)
    for axes, (column, title) in zip(panels, COLUMNS.items(), strict=True):
        for eta in SOLVERS:
            line = [row for row in rows if row["eta"] == eta]
            label = "σ̂" if eta == "σ̂" else f"η = {eta}"
            axes.loglog([row["steps"] for row in line], [row[column] for row in line], marker="o", ms=4, label=label)
        if rows[0]["steps"] == 0 and column in rows[0]:
            axes.axhline(rows[0][column], color="grey", ls=":", lw=1, label="real test images")
        axes.set(xlabel="steps (network calls)", title=title)
        low, high = axes.get_ylim()
        steps = steps_of(rows)
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.set_yticks(levels := [v for v in LEVELS if low <= v <= high], [str(v) for v in levels])
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
    panels[0].set(ylabel="distance to the training split")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)


def summary(rows: list[Row]) -> Iterator[str]:
    cell = {(row["eta"], row["steps"]): row for row in rows}
    *fewer, most = steps_of(rows)
    for column in Distances.COLUMNS:
        yield COLUMNS[column].removeprefix("ours: ")
        yield "η      " + "".join(f"{s:>10}" for s in (*fewer, most))
        for eta in SOLVERS:
            yield f"{eta:<7}" + "".join(f"{cell[eta, s][column]:10.2f}" for s in (*fewer, most))
        for steps in fewer:
            off = cell["0.0", steps][column] / cell["0.0", most][column] - 1
            yield f"  DDIM(0) in {steps} steps: {100 * off:+.1f} % of its {most}-step figure"
        yield f"  σ̂ in 10 steps: {cell['σ̂', 10][column] / cell['0.0', 10][column]:.1f} times DDIM(0)'s distance"
    for steps in fewer:
        ratio = cell["0.0", most]["seconds"] / cell["0.0", steps]["seconds"]
        yield f"{steps} steps: {ratio:.1f} times as fast as {most}"


def steps_of(rows: list[Row]) -> list[int]:
    """All numbers of steps, the fewest first."""
    return sorted({row["steps"] for row in rows} - {0})


def headline(rows: list[Row]) -> str:
    cell = {(row["eta"], row["steps"]): row["frechet_classifier"] for row in rows}
    steps = steps_of(rows)
    few, many = (f"{cell['0.0', n]:.2f} in {n} steps" for n in (steps[0], steps[-1]))
    return f"{few}, {many} (η = 0); σ̂ in {steps[0]}: {cell['σ̂', steps[0]]:.1f} (Fréchet, classifier features)"
