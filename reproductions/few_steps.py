"""Quality against network calls: flow, reflow, distilled, consistency, MeanFlow and shortcut models on two moons.

Rectified flow (2209.03003), consistency models (2303.01469), MeanFlow (2505.13447), shortcut models (2410.12557), each
with the same network and number of training steps; what has a teacher has it beside. Quality is the sliced Wasserstein
distance between 20,000 samples and as many exact ones. Flows are drawn by Euler's method (DDIM), a call a step.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from data.toys import TwoMoons
from losses.consistency import ConsistencyDistillation, ConsistencyTraining
from metrics.straightness import Straightness
from reproductions.reproduction import Row, Source
from reproductions.runs import UNSEEN, in_runs, made, shortened
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from samplers.jumps import Jumps
from samplers.measure import sliced_wasserstein
from training.cli import load_experiment
from training.reflow import Reflow
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Flow Straight and Fast (rectified flow); Consistency Models; MeanFlow; Shortcut Models",
    arxiv="2209.03003, 2303.01469, 2505.13447, 2410.12557",
    equation="one-step and few-step quality",
    number="FID in one step 4.85 (reflow, distilled), 2.51 (improved consistency), 2.92 (MeanFlow), CIFAR-10",
)
CALLS = (1, 2, 4, 8, 16, 32)
FEW = (1, 4, 16)  # at tiny
SAMPLES = {"tiny": 5000, "small": 20_000}
STEPS = 200  # of a cut training
SIZE = (8, 5)


def flow(steps: int) -> Diffusion:
    return Diffusion(solver=DDIM(), steps=steps)


def jumps(steps: int) -> Jumps:
    return Jumps(steps=steps)


def consistency(steps: int) -> Jumps:
    return Jumps(steps=steps, renoise=True)


# experiment → (what the figure calls it, how it is drawn, with how many calls)
MODELS: dict[str, tuple[str, Any, tuple[int, ...]]] = {
    "toy_flow": ("rectified flow", flow, CALLS),
    "toy_ot_flow": ("minibatch OT flow", flow, CALLS),
    "toy_reflow": ("reflow", flow, CALLS),
    "toy_distill": ("reflow, distilled", flow, (1,)),
    "toy_consistency": ("consistency training", consistency, (1, 2, 4)),
    "toy_consistency_distillation": ("consistency distillation", consistency, (1, 2, 4)),
    "toy_meanflow": ("MeanFlow", jumps, CALLS),
    "toy_shortcut": ("shortcut", jumps, CALLS),
}


def run(name: str, scale: str) -> Path:
    """The folder of a run; at tiny all are trained in fewer steps of smaller batches, on fewer pairs."""
    if scale != "tiny":
        return made(name)
    experiment = load_experiment(name)
    changes: dict[str, Any] = {**shortened(name, STEPS), "batch_size": 256, **UNSEEN}
    if isinstance(experiment.data, Reflow):
        teacher = in_runs(Path(experiment.data.teacher).name, scale)
        changes["data"] = replace(experiment.data, teacher=str(teacher), pairs=16_384)
    if experiment.teacher:
        changes["teacher"] = str(in_runs(Path(experiment.teacher).name, scale))
    if isinstance(experiment.loss, (ConsistencyTraining, ConsistencyDistillation)):
        changes["loss"] = replace(experiment.loss, doubling=experiment.loss.doubling * STEPS // experiment.steps)
    return made(name, in_runs(name, scale), **changes)


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    samples = SAMPLES[scale]
    exact, other = (np.asarray(TwoMoons().sample(jax.random.key(1000 + i), samples)) for i in (0, 1))
    yield {"model": "two exact sets", "wasserstein": sliced_wasserstein(exact, other)}
    for name, (model, sampler, calls) in MODELS.items():
        ready = read(run(name, scale))
        shape: Row = {}
        if sampler is flow and len(calls) > 1:
            shape = Straightness()(ready.evaluation(TwoMoons()))
        for steps in (n for n in calls if n in (FEW if scale == "tiny" else CALLS)):
            drawn, _ = ready.draw(sampler(steps), samples)
            yield {"model": model, "network_calls": steps, "wasserstein": sliced_wasserstein(drawn.x, exact)} | shape


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    for i, (model, _, _) in enumerate(MODELS.values()):
        line = [row for row in rows if row["model"] == model]
        x, y = [row["network_calls"] for row in line], [row["wasserstein"] for row in line]
        axes.loglog(x, y, "D" if len(line) == 1 else "o-", color=f"C{i}", ms=5, lw=1.3, label=model)
    axes.axhline(rows[0]["wasserstein"], color="grey", ls=":", lw=1, label="two exact sets")
    axes.set(xlabel="network calls of a sample", ylabel="sliced Wasserstein distance to two moons")
    axes.set_xticks(CALLS, [str(c) for c in CALLS])
    axes.minorticks_off()
    axes.grid(True, alpha=0.3)
    figure.legend(loc="outside right center", fontsize=9)


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'network calls':28}" + "".join(f"{c:>9}" for c in CALLS)
    for model, _, _ in MODELS.values():
        cell = {row["network_calls"]: row["wasserstein"] for row in rows if row["model"] == model}
        yield f"{model:28}" + "".join(f"{cell[c]:9.4f}" if c in cell else f"{'–':>9}" for c in CALLS)
    yield f"two exact sets: {rows[0]['wasserstein']:.4f}"
    for row in rows:
        if "path_energy" in row and row["network_calls"] == 1:
            yield f"{row['model']}: straightness {row['straightness']:.4f}, path energy {row['path_energy']:.3f}"


def headline(rows: list[Row]) -> str:
    cell = {(row["model"], row.get("network_calls")): row["wasserstein"] for row in rows}
    few = ("rectified flow", "reflow", "reflow, distilled", "consistency distillation", "MeanFlow", "shortcut")
    return f"distance in one call: {', '.join(f'{model} {cell[model, 1]:.3f}' for model in few)}"
