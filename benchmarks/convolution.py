"""The gradient of scanned 3×3 convolutions, ours beside XLA's own: `python benchmarks/convolution.py [--rounds 5]`.

Three convolutions with a tanh between them, 64 images of 28×28×40. XLA's own is measured in a scan and without one.
Sides take turns; medians and quartiles.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Timed, interleaved, quartiles
from models.convolution import convolution
from training.startup import start

DEPTH, BATCH, SIDE, CHANNELS = 3, 64, 28, 40
xla = partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def gradient(convolve: Any, unroll: int) -> Timed:
    """A function that takes one gradient with respect to kernels and images, and waits."""
    x = jax.random.normal(jax.random.key(0), (BATCH, SIDE, SIDE, CHANNELS))
    kernels = 0.05 * jax.random.normal(jax.random.key(1), (DEPTH, 3, 3, CHANNELS, CHANNELS))

    def loss(kernels: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(lambda h, k: (jnp.tanh(convolve(h, k)), None), x, kernels, unroll=unroll)
        return jnp.sum(h**2)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(kernels, x).compile()
    return lambda: jax.block_until_ready(compiled(kernels, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    start()
    sides = {"ours, scanned": (convolution, 1), "XLA's, scanned": (xla, 1), "XLA's, unrolled": (xla, DEPTH)}
    seconds = interleaved([gradient(*side) for side in sides.values()], options.rounds)
    print(f"{jax.devices()[0].device_kind}, {BATCH} of {SIDE}x{SIDE}x{CHANNELS}, float32")
    for name, column in zip(sides, seconds.T, strict=True):
        print(f"{name:16} {quartiles(1e3 * column)} ms")
    ours, scanned, unrolled = np.median(seconds, axis=0)
    print(f"over ours: XLA's scanned x{scanned / ours:.1f}, unrolled x{unrolled / ours:.2f}")


if __name__ == "__main__":
    main()
