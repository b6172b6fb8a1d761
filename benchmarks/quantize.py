"""The nearest-code search beside the naive form: time and memory, at 8,192 codes by default.

    python benchmarks/quantize.py [--codes 8192] [--width 64] [--latents 3136 12544] [--rounds 9]

Naive: all differences [N, K, D], squared and summed. Beside it: all distances [N, K] by one matrix product, and argmin.
Ours: the same product, about 2²⁰ distances at a time (models/quantize.py). Sides take turns; medians and quartiles.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved, quartiles
from models.quantize import nearest
from training.startup import start


def naive(z: Any, codebook: Any) -> Any:
    return jnp.argmin(jnp.sum((z[:, None] - codebook[None]) ** 2, axis=-1), axis=1)


def whole(z: Any, codebook: Any) -> Any:
    return jnp.argmin(0.5 * jnp.sum(codebook**2, axis=1)[None] - z @ codebook.T, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latents", type=int, nargs="+", default=[3136, 12544])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    start()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, K = {options.codes}, D = {options.width}")
    for n in options.latents:
        z, codebook = (
            jax.random.normal(jax.random.key(i), (rows, options.width)) for i, rows in enumerate((n, options.codes))
        )
        sides = {"naive": naive, "one product": whole, "ours": nearest}
        compiled = {name: jax.jit(side).lower(z, codebook).compile() for name, side in sides.items()}
        answers = [np.asarray(side(z, codebook)) for side in compiled.values()]
        alike = [100.0 * float(np.mean(answer == answers[0])) for answer in answers]
        functions = [lambda side=side: jax.block_until_ready(side(z, codebook)) for side in compiled.values()]
        seconds = interleaved(functions, options.rounds)
        for i, (name, side) in enumerate(compiled.items()):
            memory = side.memory_analysis().temp_size_in_bytes / 2**20
            ratio = float(np.median(seconds[:, 0] / seconds[:, i]))
            print(
                f"  N = {n:6}  {name:12}{quartiles(seconds[:, i])} s, x{ratio:5.1f} of naive's speed, "
                f"{memory:8.1f} MiB, {alike[i]:.2f} % of codes as the naive form's"
            )


if __name__ == "__main__":
    main()
