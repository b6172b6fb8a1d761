"""Memory and time of a gradient against depth, under every checkpointing policy.

    python benchmarks/memory.py [--chains residual transformer glow] [--rounds 3] [--plot FILE] [--rows FILE]

    residual      h ← h + tanh(tanh(h·A)·B)·C, 2,048 vectors of 64 numbers
    transformer   blocks of models/transformer.py: width 128, 4 heads, 4 sequences of 128 tokens
    glow          steps of models/flows/glow.py on 8×8 images, networks of 128 units, batch 256

Memory is what `memory_analysis()` of the compiled gradient calls temporary, at depths of 16 to 1,024: nothing is run
for it. The exponent is the slope of log memory over log depth, from 64 on; for `nested` the line over log₄ depth is
fitted, and its slope said. Times are medians of rounds in which all policies take turns. Passes of the
chain's layers beside the first are those of models/remat.py's table and, counted, those of the traced program's matrix
products (training/flops.py).
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.timing import interleaved
from models.flows.conditioners import MLPConditioner
from models.flows.glow import Glow
from models.remat import LOG_BASE, checkpointed_scan, named, passes
from models.transformer import Transformer
from training.flops import matmul_flops
from training.startup import keep_freed_memory

POLICIES = ("none", "dots", "full", "group(4)", "sqrt", "nested", "binomial(8)")
THEORY = {"none": "1", "dots": "1", "full": "1", "group(4)": "1", "sqrt": "1/2", "nested": "log", "binomial(8)": "0"}
DEPTHS, TIMED, FITTED = (16, 64, 256, 1024), (16, 64, 256), 64
MIB = 2**20
Chain = tuple[Callable[..., Any], Any]  # (loss of what it is called with, shapes of that)


def residual(depth: int, remat: str) -> Chain:
    def body(h: Any, layer: Any) -> tuple[Any, None]:
        y = jnp.tanh(named(h @ layer["a"], "hidden"))
        return h + jnp.tanh(y @ layer["b"]) @ layer["c"], None

    shapes = {name: jax.ShapeDtypeStruct((depth, 64, 64), jnp.float32) for name in "abc"}
    loss = lambda layers, h: jnp.mean(checkpointed_scan(body, h, layers, remat)[0] ** 2)
    return loss, (shapes, jax.ShapeDtypeStruct((2048, 64), jnp.float32))


def transformer(depth: int, remat: str) -> Chain:
    net = Transformer(width=128, depth=depth, heads=4, remat=remat)
    x = jax.ShapeDtypeStruct((4, 128, 128), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    return lambda params, x: jnp.mean(net.apply(params, x)[0] ** 2), (params, x)


def glow(depth: int, remat: str) -> Chain:
    flow = Glow(levels=1, steps=depth, conditioner=MLPConditioner(width=128), convolution="plain", remat=remat)
    x = jax.ShapeDtypeStruct((256, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(flow.init, jax.random.key(0), x)

    def loss(params: Any, x: Any) -> Any:
        z, logdet = flow.forward(params, x)
        return jnp.mean(jnp.sum(z**2, axis=(1, 2, 3)) / 2 - logdet)

    return loss, (params, x)


CHAINS = {"residual": residual, "transformer": transformer, "glow": glow}


def _run(compiled: Any, arguments: Any) -> Any:
    return jax.block_until_ready(compiled(*arguments))


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each policy and depth."""
    policies = (*POLICIES, "reversible", "reversible(8)") if name == "glow" else POLICIES
    rows = []
    for depth in DEPTHS:
        runs = []
        for remat in policies:
            loss, shapes = CHAINS[name](depth, remat)
            traced = jax.jit(jax.grad(loss)).trace(*shapes)
            compiled = traced.lower().compile()
            memory = compiled.memory_analysis().temp_size_in_bytes
            row = {"chain": name, "depth": depth, "remat": remat, "mib": memory / MIB}
            row["flops"] = matmul_flops(traced.jaxpr)
            rows.append(row)
            if depth in TIMED:
                rng = np.random.default_rng(0)
                draw = lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype)
                runs.append(partial(_run, compiled, jax.tree.map(draw, shapes)))
        if runs:
            seconds = np.median(interleaved([run for run in runs for _ in range(2)], rounds)[:, 1::2], axis=0)
            for row, took in zip(rows[-len(policies) :], seconds, strict=True):
                row["seconds"] = float(took)
        print(f"{name}: depth {depth} is done", file=sys.stderr, flush=True)
    return rows


def exponent(rows: list[dict[str, Any]], remat: str) -> str:
    """How memory grows from depth 64 on."""
    own = [row for row in rows if row["remat"] == remat and row["depth"] >= FITTED]
    depth, mib = (np.asarray([row[key] for row in own]) for key in ("depth", "mib"))
    if remat == "nested":
        slope = np.polyfit(np.emath.logn(LOG_BASE, depth), mib, 1)[0]
        return f"{slope:.2f} MiB a level"
    return f"{round(np.polyfit(np.log(depth), np.log(mib), 1)[0], 2) + 0.0:.2f}"  # and no -0.00


def said(name: str, rows: list[dict[str, Any]]) -> None:
    """The table of one chain."""
    largest, layers = max(TIMED), [row for row in rows if row["depth"] == max(TIMED)]
    first = next(row for row in layers if row["remat"] == "none")
    one_pass = first["flops"] / 3  # forwards, and two products backwards for each
    print(f"\n{name}, {largest} layers   (memory in MiB at depths {', '.join(map(str, DEPTHS))})")
    print(
        f"{'remat':15}{'MiB':>10}{'of none':>10}{'seconds':>10}{'of none':>9}{'passes':>9}{'counted':>9}"
        f"{'exponent':>18}{'theory':>8}   at all depths"
    )
    for row in layers:
        remat, every = row["remat"], [r["mib"] for r in rows if r["remat"] == row["remat"]]
        known = remat not in ("dots", "reversible", "reversible(8)")
        theory = f"{passes(remat, largest) / largest:.2f}" if known else "–"
        counted = (row["flops"] - first["flops"]) / one_pass
        print(
            f"{remat:15}{row['mib']:10.1f}{'1/%.1f' % (first['mib'] / row['mib']):>10}{row['seconds']:10.3f}"
            f"{row['seconds'] / first['seconds']:9.2f}{theory:>9}{counted:9.2f}{exponent(rows, remat):>18}"
            f"{THEORY.get(remat, '0' if remat == 'reversible' else '1'):>8}   {', '.join(f'{m:.1f}' for m in every)}"
        )


def draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Memory with its exponents, and time over that of `none`."""
    names = list(dict.fromkeys(row["chain"] for row in rows))
    for column, name in enumerate(names):
        own = [row for row in rows if row["chain"] == name]
        memory = figure.add_subplot(2, len(names), 1 + column)
        clock = figure.add_subplot(2, len(names), 1 + column + len(names))
        plain = {row["depth"]: row.get("seconds") for row in own if row["remat"] == "none"}
        for remat in dict.fromkeys(row["remat"] for row in own):
            line = [row for row in own if row["remat"] == remat]
            timed = [row for row in line if "seconds" in row]
            style = {"marker": "o", "markersize": 3.5, "linestyle": "--" if remat.startswith("rev") else "-"}
            label = f"{remat}: {exponent(line, remat)}".replace(" MiB a level", "·log₄ n")
            memory.loglog([row["depth"] for row in line], [row["mib"] for row in line], label=label, **style)
            clock.semilogx([r["depth"] for r in timed], [r["seconds"] / plain[r["depth"]] for r in timed], **style)
        memory.set(title=name, ylabel="temporary memory, MiB" if column == 0 else "")
        memory.set_ylim(top=100 * max(row["mib"] for row in own))
        memory.legend(
            fontsize=7.5, loc="upper left", ncols=2, title="policy: exponent from 64 layers on", title_fontsize=8
        )
        clock.set(xlabel="layers", ylabel="time of a gradient over none's" if column == 0 else "", ylim=(0, None))
        for axes, depths in ((memory, DEPTHS), (clock, TIMED)):
            axes.set_xticks(depths, [f"{depth:,}" for depth in depths])
            axes.minorticks_off()
            axes.grid(True, alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--rows", type=Path, help="where the rows are kept as JSON; if there already, they are read")
    options = parser.parse_args()
    keep_freed_memory()
    if options.rows and options.rows.exists():
        rows = json.loads(options.rows.read_text())
    else:
        rows = [row for name in options.chains for row in measure(name, options.rounds)]
        if options.rows:
            options.rows.write_text(json.dumps(rows))
    for name in dict.fromkeys(row["chain"] for row in rows):
        said(name, [row for row in rows if row["chain"] == name])
    if options.plot:
        figure = Figure(figsize=(13, 7.5), layout="constrained")
        draw(rows, figure)
        figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
