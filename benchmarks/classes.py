"""A training step of the head over very many classes: time and temporary memory against their number.

    python benchmarks/classes.py [--classes 10000 100000 1000000] [--batch 256] [--width 128] [--plot FILE]

A step is forward, backward and a momentum update of W, in place; the loss is ArcFace's.

    naive            B×C logits, JAX's own gradient
    chunked          losses/linear_cross_entropy.py
    fused            losses/fused_head.py: W's gradient is never held either
    sampled 0.1      a tenth of the classes (Partial FC), W's gradient dense, and fused
    over 8 devices   chunked and fused, W's rows over 8 virtual devices of this CPU: memory is a device's, time that of
                     all of them on the same cores

Memory is what `memory_analysis()` of the compiled step calls temporary. Sides take turns; medians and quartiles.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.timing import interleaved, quartiles
from losses.class_chunks import Settings
from losses.fused_head import HeadSGD, fused_step
from losses.linear_cross_entropy import linear_cross_entropy
from losses.margin_softmax import ArcFace
from models.embedder import unit

MARGIN, UPDATE = ArcFace(), HeadSGD()
KEY = jax.random.key(3)
SHARDED = ("chunked", "fused")


def naive(x: Any, w: Any, label: Any) -> Any:
    cos = unit(x) @ unit(w).T
    own = jnp.take_along_axis(cos, label[:, None], axis=1)[:, 0]
    target = MARGIN.target(own, own, label, 0)
    z = (MARGIN.scale * cos).at[jnp.arange(len(label)), label].set(target)
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - target)


def dense(loss: Any) -> Any:
    """Forward, backward and momentum of a loss(x, w, label)."""

    def step(x: Any, label: Any, w: Any, momentum: Any) -> Any:
        value, (dx, dw) = jax.value_and_grad(loss, (0, 1))(x, w, label)
        momentum = UPDATE.momentum * momentum + dw
        return value, dx, w - UPDATE.learning_rate * momentum, momentum

    return step


def chunked(axis: str | None, sample: float = 1.0) -> Any:
    how = {"margin": MARGIN, "class_axis": axis, "sample": sample, "key": KEY}
    return dense(lambda x, w, label: jnp.mean(linear_cross_entropy(x, w, label, **how).value))


def fused(axis: str | None, sample: float = 1.0) -> Any:
    def step(x: Any, label: Any, w: Any, momentum: Any) -> Any:
        how = Settings(MARGIN, w.shape[0], sample=sample, axis=axis)
        found = fused_step(how, UPDATE, x, w, momentum, jnp.zeros(len(label)), label, KEY, 0)
        return jnp.mean(found.value), found.slope_x / len(label), found.w, found.momentum

    return step


class Side:
    """A compiled step and its W, which it updates."""

    def __init__(self, step: Any, classes: int, batch: int, width: int, devices: int) -> None:
        self.x = jax.random.normal(jax.random.key(0), (batch, width))
        self.label = jax.random.randint(jax.random.key(1), (batch,), 0, classes)
        mesh = jax.make_mesh((devices,), ("classes",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("classes"))
        places = (whole, whole, rows, rows)
        with jax.set_mesh(mesh):
            jitted = jax.jit(step, donate_argnums=(2, 3), in_shardings=places, out_shardings=places)
            shape = jax.ShapeDtypeStruct((classes, width), jnp.float32)
            self.step = jitted.lower(self.x, self.label, shape, shape).compile()
        self.memory = self.step.memory_analysis().temp_size_in_bytes / 2**20
        self.w = jax.device_put(jax.random.normal(jax.random.key(2), (classes, width)), rows)
        self.momentum = jax.device_put(jnp.zeros((classes, width)), rows)
        self.inputs = jax.device_put((self.x, self.label), whole)
        self.value = 0.0

    def __call__(self) -> None:
        value, _, self.w, self.momentum = self.step(*self.inputs, self.w, self.momentum)
        self.value = float(value)
        jax.block_until_ready(self.w)


def measure(options: argparse.Namespace, steps: dict[str, Any], devices: int) -> list[dict[str, Any]]:
    rows = []
    for classes in options.classes:
        sides = {name: Side(step, classes, options.batch, options.width, devices) for name, step in steps.items()}
        seconds = interleaved(list(sides.values()), options.rounds)
        for i, (name, side) in enumerate(sides.items()):
            taken = f"{quartiles(seconds[:, i])} s  {side.memory:8.1f} MiB  loss {side.value:.4f}"
            print(f"  C = {classes:8}  {name:24}{taken}", flush=True)
            row = {"side": name, "classes": classes, "seconds": float(np.median(seconds[:, i])), "MiB": side.memory}
            rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys(row["side"] for row in rows)):
        some = [row for row in rows if row["side"] == name]
        over = "over" in name
        how: dict[str, Any] = {
            "marker": "o",
            "ms": 4,
            "ls": "--" if over else "-",
            "color": f"C{number}",
            "label": name,
        }
        panels[0].loglog([row["classes"] for row in some], [row["MiB"] for row in some], **how)
        if not over:
            panels[1].loglog([row["classes"] for row in some], [row["seconds"] for row in some], **how)
    panels[0].set(xlabel="classes", ylabel="temporary memory of a step, MiB (each device's)")
    panels[1].set(xlabel="classes", ylabel="seconds a step")
    for panel in panels:
        panel.grid(which="major", lw=0.4, alpha=0.5)
    panels[0].legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", default="")
    parser.add_argument("--shards", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shards:
        steps = {f"{name}, over {options.shards} devices": globals()[name]("classes") for name in SHARDED}
        print(json.dumps(measure(options, steps, options.shards)))
        return
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, B = {options.batch}, D = {options.width}", flush=True
    )
    steps = {"naive": dense(naive), "chunked": chunked(None), "fused": fused(None)}
    steps |= {"sampled 0.1": chunked(None, 0.1), "sampled 0.1, fused": fused(None, 0.1)}
    rows = measure(options, steps, 1)
    # Virtual devices have to be there before JAX is: a process of their own.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    arguments = [
        sys.executable,
        __file__,
        "--shards",
        "8",
        "--rounds",
        str(options.rounds),
        "--batch",
        str(options.batch),
    ]
    arguments += ["--width", str(options.width), "--classes", *map(str, options.classes)]
    found = subprocess.run(
        arguments, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=True
    )
    *shown, table = found.stdout.strip().split("\n")
    print("\n".join(shown))
    rows += json.loads(table)
    last = [row for row in rows if row["classes"] == max(options.classes)]
    for row in last:
        base = {other["side"]: other for other in last}
        over = {name: (base[name]["MiB"] / row["MiB"], base[name]["seconds"] / row["seconds"]) for name in SHARDED}
        over = {"naive": (base["naive"]["MiB"] / row["MiB"], base["naive"]["seconds"] / row["seconds"])} | over
        print(
            f"{row['side']:24}" + "; ".join(f"1/{m:.1f} of {name}'s memory, x{t:.2f}" for name, (m, t) in over.items())
        )
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
