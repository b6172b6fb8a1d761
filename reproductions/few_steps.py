"""Quality against network calls: flow, reflow, distilled, consistency, MeanFlow and shortcut models on two moons.

Rectified flow (2209.03003), consistency models (2303.01469), MeanFlow (2505.13447), shortcut models (2410.12557), each
with the same network and number of training steps; what has a teacher has it beside. Quality is the sliced Wasserstein
distance between 20,000 samples and as many exact ones. Flows are drawn by Euler's method (DDIM), a call a step.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from data.toys import TwoMoons
from metrics.metric import Evaluation
from metrics.straightness import Straightness
from reproductions.reproduction import Row, Trained, made
from reproductions.reproduction import trained as read
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from samplers.jumps import Jumps
from samplers.measure import sliced_wasserstein

SCALES = {"tiny": None, "small": None, "paper": None}
CALLS = (1, 2, 4, 8, 16, 32)
SAMPLES = 20_000
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


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    exact, other = (np.asarray(TwoMoons().sample(jax.random.key(1000 + i), SAMPLES)) for i in (0, 1))
    yield {"model": "two exact sets", "wasserstein": sliced_wasserstein(exact, other)}
    for name, (model, sampler, calls) in MODELS.items():
        ready = read(made(name))
        shape: Row = {}
        if sampler is flow and len(calls) > 1:
            nothing = lambda n: np.zeros((n, 2))  # noqa: E731, no samples are looked at
            shape = Straightness()(Evaluation(ready.model, ready.variables, TwoMoons(), nothing))
        for steps in calls:
            drawn, _ = ready.draw(sampler(steps), SAMPLES)
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
