"""FFJORD's densities of the plane through time, and how near they come to the true ones (1810.01367 figures 1 and 2).

Eight Gaussians and two moons. The optimum of the held-out log-likelihood is minus the density's entropy; both are means
over the same exact samples, so that their difference, the Kullback–Leibler divergence, has little noise. NFE: network
calls of one example's density, by the fixed steps that a run was trained with and by dopri5 at 1e-5.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from data.toys import EightGaussians, Toy, TwoMoons
from metrics.examples import mean_and_error
from models.flows.cnf import CNF
from models.flows.flow import Flow
from reproductions.reproduction import Row, Source
from reproductions.runs import UNSEEN, in_runs, made, shortened
from samplers.flow import FlowSampler
from samplers.integrators import Adaptive
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models",
    arxiv="1810.01367",
    equation="§2.2, figures 1 and 2",
)
STEPS = 60  # of a cut training
DENSITIES: dict[str, Toy] = {"eight_gaussians": EightGaussians(), "two_moons": TwoMoons()}
EXAMPLES = {"tiny": 2000, "small": 20_000}
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the flow from noise to data, as it is shown
FRAMES = {"tiny": 9, "small": 30}
LIMIT, SIDE = 3.0, {"tiny": 80, "small": 120}
SIZE = (13, 5.6)


def density_at(run: Trained, t: float, side: int) -> np.ndarray:
    """log p at time t of the flow, 0 noise and 1 data, on a grid [side, side] of the plane.

    The flow of the last part of the way: points are taken from there to noise, and the density with them.
    """
    flow: Any = run.model
    line = jnp.linspace(-LIMIT, LIMIT, side)
    points = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
    params = run.variables["params"]["bijection"]

    @jax.jit
    def log_prob(points: Any, t0: Any) -> Any:
        z, logdet = flow.bijection.between(params, points, t0, 1.0)
        return flow.prior.log_prob({}, z) + logdet

    return np.asarray(log_prob(points, jnp.float32(1.0 - t))).reshape(side, side)


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for name, toy in DENSITIES.items():
        changes: dict[str, Any] = {"data": toy}
        if scale == "tiny":
            changes |= {**shortened("ffjord_toy", STEPS), "batch_size": 256, **UNSEEN}
        run = read(made("ffjord_toy", in_runs(f"ffjord_toy_{name}", scale), **changes))
        x = toy.sample(jax.random.key(1000), EXAMPLES[scale])
        best = np.asarray(toy.log_prob(x), np.float64)
        model: Any = run.model
        solvers = {"trained with": model, "dopri5": with_integrator(model, Adaptive(rtol=1e-5, atol=1e-5))}
        row: Row = {"density": name, "entropy": -best.mean()}
        for solver, flow in solvers.items():
            found, seen = observed(flow, run.variables, x)
            gap = best - found
            row |= {f"nll, {solver}": -found.mean(), f"nfe, {solver}": seen["nfe"].mean()}
            row |= dict(zip((f"gap, {solver}", f"stderr, {solver}"), mean_and_error("", gap).values(), strict=True))
        row["samples"] = run.draw(FlowSampler(), 2000)[0].x
        times = np.linspace(0.0, 1.0, FRAMES[scale])
        row["densities"] = np.stack([density_at(run, t, SIDE[scale]) for t in times])
        yield row


def with_integrator(model: Flow, integrator: Any) -> Flow:
    bijection: Any = model.bijection
    assert isinstance(bijection, CNF)
    return replace(model, bijection=replace(bijection, integrator=integrator))


def observed(flow: Flow, variables: Any, x: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """log p of each example and what the flow has to say of its solve."""
    keys = jax.random.split(jax.random.key(0), len(x))
    found, seen = jax.jit(lambda v, k, x: flow.observe(v, k, x))(variables, keys, x)
    return np.asarray(found, np.float64), {name: np.asarray(value) for name, value in seen.items()}


def _show(axes: Any, log_density: np.ndarray, title: str) -> None:
    axes.imshow(np.exp(log_density), origin="lower", extent=(-LIMIT, LIMIT, -LIMIT, LIMIT), cmap="magma")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])


def draw(rows: list[Row], figure: Figure) -> None:
    axes: Any = figure.subplots(len(rows), len(TIMES) + 2)
    for line, row in zip(axes, rows, strict=True):
        for part, t in zip(line, TIMES, strict=False):
            _show(part, row["densities"][round(t * (len(row["densities"]) - 1))], f"t = {t:g}")
        points = row["samples"]
        line[-2].scatter(points[:, 0], points[:, 1], s=2, alpha=0.5, linewidths=0)
        line[-2].set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=[], yticks=[], aspect="equal")
        line[-2].set_title("samples", fontsize=10)
        side = row["densities"].shape[-1]
        grid = np.linspace(-LIMIT, LIMIT, side)
        points = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2), jnp.float32)
        exact = DENSITIES[row["density"]].log_prob(points)
        _show(line[-1], np.asarray(exact).reshape(side, side), "true density")


def animation(rows: list[Row]) -> list[Image.Image]:
    frames, count = [], len(rows[0]["densities"])
    for i in range(count):
        figure = Figure(figsize=(6, 3.2), dpi=90, layout="constrained")
        for axes, row in zip(figure.subplots(1, len(rows)), rows, strict=True):
            _show(axes, row["densities"][i], f"{row['density'].replace('_', ' ')}, t = {i / (count - 1):.2f}")
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        frames.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
    return frames


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        for solver in ("trained with", "dopri5"):
            yield (
                f"{row['density']}, {solver}: {row[f'nll, {solver}']:.4f} nats, optimum {row['entropy']:.4f}, "
                f"gap {row[f'gap, {solver}']:.4f} ± {row[f'stderr, {solver}']:.4f}, NFE {row[f'nfe, {solver}']:.1f}"
            )


def headline(rows: list[Row]) -> str:
    told = (f"{row['density'].replace('_', ' ')} {row['gap, dopri5']:.3f}" for row in rows)
    return f"nats above the optimum: {', '.join(told)}, by dopri5 in {rows[0]['nfe, dopri5']:.0f} network calls"
