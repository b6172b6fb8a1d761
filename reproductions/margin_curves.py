"""What each margin makes of the target's logit and of its gradient, against the angle to the class.

As in ArcFace's target-logit curves (1801.07698, figure 4b), with the gradient beside them: −dt/dθ is how hard an
example at θ is turned towards its class when it is told wrongly, in units of the scale. `worth` is the angle at which
the class has the logit that any other class has at 60 degrees: 60 without margin, less with one.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from losses.margin_softmax import (
    AdaFace,
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    LSoftmax,
    MagFace,
    Margin,
    NormFace,
    SphereFace2,
)
from reproductions.reproduction import Row, Source
from training.trained import Trained

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
    arxiv="1801.07698",
    equation="eq. 3 and 4, figure 4b",
)
SIZE = (11, 4.8)
ALONE: dict[str, Any] = {"start": 0.0, "least": 0.0}  # ψ without the cosine it is annealed from
MARGINS: dict[str, Margin] = {
    "softmax, NormFace": NormFace(),
    "L-Softmax m=2": LSoftmax(m=2, **ALONE),
    "A-Softmax m=4": ASoftmax(m=4, **ALONE),
    "A-Softmax m=4, λ=5": ASoftmax(m=4, start=5.0),
    "CosFace m=0.35": CosFace(m=0.35),
    "ArcFace m=0.5": ArcFace(m=0.5),
    "ArcFace m=0.5, easy": ArcFace(m=0.5, beyond="easy"),
    "combined 1, 0.3, 0.2": CombinedMargin(m1=1.0, m2=0.3, m3=0.2),
    "MagFace, ‖x‖=110": MagFace(),
    "AdaFace, ẑ=−1 (small norm)": AdaFace(),
    "AdaFace, ẑ=1 (large norm)": AdaFace(),
    "SphereFace2 m=0.4 t=3": SphereFace2(),
}
COLOURS = (*(f"C{i}" for i in range(10)), "black", "darkgoldenrod")
STEP = 10**9  # annealing is over
DEGREES = np.linspace(0.0, 180.0, 721)


def curve(name: str, margin: Margin) -> tuple[np.ndarray, np.ndarray]:
    """Target's logit and −dt/dθ at all DEGREES, in units of the scale."""
    # Three norms, of which AdaFace takes the first to be far below and the last to be far above their mean.
    norms = jnp.asarray([1.0, 110.0, 219.0]) if isinstance(margin, MagFace) else jnp.asarray([0.0, 1.0, 2.0])
    which = 0 if "ẑ=−1" in name else 2 if "ẑ=1" in name else 1
    margin = replace(margin, h=10.0) if isinstance(margin, AdaFace) else margin
    scale = margin.scale if margin.UNIT_FEATURES else 1.0

    def logit(theta: jax.Array) -> jax.Array:
        return margin.target(jnp.full(3, jnp.cos(theta)), norms, jnp.zeros(3, jnp.int32), STEP)[which] / scale

    theta = jnp.asarray(np.radians(DEGREES), jnp.float32)
    value, slope = jax.vmap(jax.value_and_grad(logit))(theta)
    return np.asarray(value), -np.asarray(slope)


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for name, margin in MARGINS.items():
        value, slope = curve(name, margin)
        other = np.asarray(margin.other(jnp.full((1, 1), 0.5 * margin.scale)))[0, 0] / margin.scale
        row: Row = {"margin": name, "at_0": float(value[0]), "at_60": float(value[240]), "at_120": float(value[480])}
        row |= {"worth": float(DEGREES[np.argmax(value <= other)]), "steepest": float(np.max(slope))}
        yield row | {"value": value, "slope": slope}


def draw(rows: list[Row], figure: Figure) -> None:
    panels = figure.subplots(1, 2)
    for i, row in enumerate(rows):
        style, colour = ("-", "--")[i % 2], COLOURS[i]
        for axes, column in zip(panels, ("value", "slope"), strict=True):
            # A line is broken where the logit jumps.
            line = np.where(np.abs(np.diff(row[column], prepend=row[column][0])) > 0.1, np.nan, row[column])
            axes.plot(DEGREES, line, style, lw=1.4, color=colour, label=row["margin"], alpha=0.9)
    panels[0].set(xlabel="θ, degrees", ylabel="target's logit / s", ylim=(-4.2, 1.1))
    panels[1].set(xlabel="θ, degrees", ylabel="−d logit/dθ / s", ylim=(-0.1, 2.2))
    for axes in panels:
        axes.set_xticks(range(0, 181, 30))
        axes.grid(lw=0.4, alpha=0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def headline(rows: list[Row]) -> str:
    """An angle that other classes' logits have at 60 degrees."""
    worth = {row["margin"]: row["worth"] for row in rows}
    told = (f"{name} at {worth[name]:.1f}°" for name in ("A-Softmax m=4", "CosFace m=0.35", "ArcFace m=0.5"))
    return f"the logit of other classes at 60° is met by {', '.join(told)}"
