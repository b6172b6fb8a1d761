"""Rectified flow before and after reflow, and MeanFlow: straightness and one-step quality on 2-D densities.

Liu et al. 2209.03003, §5.1 and figure 2; Geng et al. 2505.13447. For each density and seed three runs: a rectified flow
from independent pairs, one from the pairs that its ODE makes (reflow), and MeanFlow on the data itself. Quality is the
sliced Wasserstein distance between 20,000 samples and as many exact ones, beside that of two exact sets; straightness
and path energy as in metrics/straightness.py. tiny is two moons and one seed.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from data.toys import EightGaussians, Toy, TwoMoons
from metrics.straightness import Straightness
from reproductions.few_steps import run as cut
from reproductions.reproduction import Row, Source
from reproductions.runs import made
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from samplers.jumps import Jumps
from samplers.measure import sliced_wasserstein
from samplers.sampler import Sampler
from training.cli import load_experiment
from training.picture import figure_pixels
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow; MeanFlow",
    arxiv="2209.03003, 2505.13447",
    equation="eq. 1, §5.1, figure 2",
)
DENSITIES: dict[str, Toy] = {"two_moons": TwoMoons(), "eight_gaussians": EightGaussians()}
WHERE = {"tiny": (("two_moons",), (0,)), "small": (tuple(DENSITIES), (0, 1, 2))}
MODELS = {"flow": "before reflow", "reflow": "after reflow", "meanflow": "MeanFlow"}
SAMPLES = {"tiny": 5000, "small": 20_000}
LINES = 150  # trajectories in a picture
SIZE = (12, 8)


def run(density: str, seed: int, model: str, scale: str) -> Path:
    """The folder of a run; trained with all that it stands on, if it is not there. tiny's are those of few_steps."""
    if scale == "tiny":
        return [cut(f"toy_{name}", scale) for name in ("flow", model)][-1]
    folder = Path("runs") / "reflow" / f"{density}_{seed}_{model}"
    data: Any = DENSITIES[density]
    if model == "reflow":
        data = replace(load_experiment("toy_reflow").data, teacher=str(run(density, seed, "flow", scale)), seed=seed)
    return made(f"toy_{model}", folder, data=data, seed=seed)


def sampler(model: str, steps: int) -> Sampler:
    return Jumps(steps=steps) if model == "meanflow" else Diffusion(solver=DDIM(), steps=steps)


def exact(density: str, seed: int, samples: int) -> np.ndarray:
    return np.asarray(DENSITIES[density].sample(jax.random.key(1000 + seed), samples))


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    (densities, seeds), samples = WHERE[scale], SAMPLES[scale]
    for density in densities:
        chance = sliced_wasserstein(exact(density, 0, samples), exact(density, 1, samples))
        for seed in seeds:
            for model in MODELS:
                this = read(run(density, seed, model, scale))
                evaluation = this.evaluation(DENSITIES[density])
                row: Row = {"density": density, "seed": seed, "model": model}
                for steps in (1, 2, 50):
                    x = this.draw(sampler(model, steps), samples)[0].x
                    row[f"wasserstein_{steps}"] = sliced_wasserstein(x, exact(density, 0, samples))
                if seed == 0:
                    row["states"] = this.draw(sampler(model, 50), LINES, trajectory=True)[0].trajectory
                    row["one_step"] = this.draw(sampler(model, 1), 1000)[0].x
                yield row | {"wasserstein_of_exact": chance} | Straightness()(evaluation)


def first_seed(rows: list[Row], density: str, model: str) -> Row:
    return next(row for row in rows if (row["density"], row["seed"], row["model"]) == (density, 0, model))


def draw(rows: list[Row], figure: Figure) -> None:
    densities = list(dict.fromkeys(row["density"] for row in rows))
    figure.set_size_inches(12, 4.2 * len(densities) + 0.4)
    grid = figure.subplots(len(densities), 3, squeeze=False)
    for line, density in zip(grid, densities, strict=True):
        for axes, model in zip(line, MODELS, strict=True):
            row = first_seed(rows, density, model)
            states, one = row["states"], row["one_step"]
            axes.plot(states[:, :, 0], states[:, :, 1], color="tab:blue", lw=0.5, alpha=0.5)
            axes.scatter(*states[0].T, s=4, color="grey", label="noise", zorder=2)
            axes.scatter(*states[-1].T, s=6, color="tab:blue", label="in 50 steps", zorder=2)
            axes.scatter(*one.T, s=2, color="tab:red", alpha=0.5, label="in one step", zorder=3)
            axes.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
            axes.set_title(
                f"{MODELS[model]}: straightness {row['straightness']:.2g}\none step's distance "
                f"{row['wasserstein_1']:.3f} (two exact sets: {row['wasserstein_of_exact']:.3f})",
                fontsize=9,
            )
        line[0].set_ylabel(density)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=3)


def animation(rows: list[Row]) -> list[Image.Image]:
    """Before and after reflow side by side, from noise to data."""
    density = rows[0]["density"]
    before, after = (first_seed(rows, density, model)["states"] for model in ("flow", "reflow"))
    frames = []
    for i in range(0, len(before), 2):
        figure = Figure(figsize=(7, 3.8), dpi=80, layout="constrained")
        for axes, states, title in zip(figure.subplots(1, 2), (before, after), ("before", "after"), strict=True):
            axes.plot(states[: i + 1, :, 0], states[: i + 1, :, 1], color="tab:blue", lw=0.5, alpha=0.4)
            axes.scatter(*states[i].T, s=5, color="tab:red")
            axes.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3), title=f"{title} reflow, t = {1 - i / 50:.2f}")
        frames.append(Image.fromarray(figure_pixels(figure)))
    return frames


def summary(rows: list[Row]) -> Iterator[str]:
    """Ratios to the flow before reflow: mean over seeds, and the worst."""
    cell = {(row["density"], row["seed"], row["model"]): row for row in rows}
    densities, seeds = dict.fromkeys(k[0] for k in cell), dict.fromkeys(k[1] for k in cell)
    for density in densities:
        for name, column, model in (
            ("one step after reflow", "wasserstein_1", "reflow"),
            ("straightness after reflow", "straightness", "reflow"),
            ("MeanFlow's one step", "wasserstein_1", "meanflow"),
        ):
            pairs = [(cell[density, seed, "flow"][column], cell[density, seed, model][column]) for seed in seeds]
            ratios = [a / b for a, b in pairs]
            means = [float(np.mean(side)) for side in zip(*pairs, strict=True)]
            yield (
                f"{density}: {name}: {means[0]:.4f} → {means[1]:.4f}, better by a factor of {np.mean(ratios):.1f} "
                f"(at least {min(ratios):.1f} over {len(pairs)} seeds)"
            )


def headline(rows: list[Row]) -> str:
    density = rows[0]["density"]
    own = [row for row in rows if row["density"] == density]
    mean = lambda model: float(np.mean([row["wasserstein_1"] for row in own if row["model"] == model]))  # noqa: E731
    told = ", ".join(f"{mean(model):.3f} {name}" for model, name in MODELS.items())
    return f"distance in one step, {density.replace('_', ' ')}: {told}"
