"""What a gradient through a deep flow needs in memory, by the four backward passes of models/flows/stacked.py.

Affine couplings of 3,072 dimensions with one hidden layer of 256 units, batches of 256, float32. Memory is what the
compiled gradient holds besides its arguments and results, as the compiler plans it: nothing is run but for the times.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from models.flows.combinators import Chain
from models.flows.conditioners import MLPConditioner
from models.flows.coupling import Coupling
from models.flows.permutations import Reverse
from models.flows.priors import Normal
from models.flows.stacked import Stacked
from reproductions.reproduction import Row, Source
from training.trained import Trained

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Training Deep Nets with Sublinear Memory Cost; The Reversible Residual Network",
    arxiv="1604.06174, 1707.04585",
    equation="memory of the backward pass against depth",
)
DIMENSIONS, WIDTH, BATCH = 3072, 256, 256
DEPTHS = {"tiny": (8, 16, 32), "small": (8, 16, 32, 64, 128)}
MODES: dict[str, dict[str, Any]] = {
    "none": {"remat": "none"},
    "full": {"remat": "full"},
    "reversible(8)": {"remat": "reversible(8)"},
    "reversible": {"remat": "reversible"},
}
ROUNDS = {"tiny": 1, "small": 3}
SIZE = (10, 4.2)
LEVELS = (10, 20, 50, 100, 200, 500, 1000)  # MiB that are marked


def gradient(depth: int, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The compiled gradient of the mean log-density, and shapes of its arguments."""
    block = Chain(parts=(Coupling(conditioner=MLPConditioner(width=WIDTH, depth=1)), Reverse()))
    flow = Stacked(block=block, depth=depth, **settings)
    x = jax.ShapeDtypeStruct((BATCH, DIMENSIONS), jnp.float32)
    params = jax.eval_shape(flow.init, jax.random.key(0), x)

    def loss(params: Any, x: Any) -> Any:
        z, logdet = flow.forward(params, x)
        return -jnp.mean(Normal().log_prob({}, z) + logdet)

    return jax.jit(jax.grad(loss)).lower(params, x).compile(), params, x


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for depth in DEPTHS[scale]:
        for name, settings in MODES.items():
            compiled, params, x = gradient(depth, settings)
            analysis: Any = compiled.memory_analysis()
            rng = np.random.default_rng(0)
            draw = lambda leaf: jnp.asarray(0.01 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: B023, E731
            arguments = jax.tree.map(draw, (params, x))
            seconds = []
            for _ in range(ROUNDS[scale]):
                began = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                seconds.append(time.perf_counter() - began)
            memory = analysis.temp_size_in_bytes / 2**20
            yield {"layers": depth, "backward": name, "memory_mib": memory, "seconds": min(seconds)}


def draw(rows: list[Row], figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for name in MODES:
        line = [row for row in rows if row["backward"] == name]
        layers = [row["layers"] for row in line]
        left.loglog(layers, [row["memory_mib"] for row in line], "o-", ms=4, label=name)
        right.plot(layers, [row["seconds"] for row in line], "o-", ms=4, label=name)
    left.set(xlabel="layers", ylabel="MiB", title="temporary memory of a gradient")
    right.set(xlabel="layers", ylabel="seconds", title="its time", ylim=(0, None))
    for axes in (left, right):
        axes.grid(True, alpha=0.3)
        depths = sorted({row["layers"] for row in rows})
        axes.set_xticks(depths, [str(d) for d in depths])
    left.minorticks_off()
    low, high = left.get_ylim()
    left.set_yticks(levels := [v for v in LEVELS if low <= v <= high], [str(v) for v in levels])
    left.legend(fontsize=9)


def summary(rows: list[Row]) -> Iterator[str]:
    depths = sorted({row["layers"] for row in rows})
    yield f"{'MiB (seconds)':24}" + "".join(f"{depth:>15}" for depth in depths)
    for name in MODES:
        cells = [f"{r['memory_mib']:.0f} ({r['seconds']:.2f})" for r in rows if r["backward"] == name]
        yield f"{name:24}" + "".join(f"{cell:>15}" for cell in cells)


def headline(rows: list[Row]) -> str:
    last = {row["backward"]: row for row in rows}  # of the deepest
    none, reversible = last["none"], last["reversible"]
    return (
        f"{none['layers']} layers: {none['memory_mib']:.0f} MiB with every activation kept, "
        f"{last['full']['memory_mib']:.0f} with each layer recomputed, {reversible['memory_mib']:.0f} reversible"
    )
