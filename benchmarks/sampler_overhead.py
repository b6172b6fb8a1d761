"""What the sampler's scan adds to the network: `python benchmarks/sampler_overhead.py [EXPERIMENT] [--n 256]`.

In turn, round after round: 50 DDIM steps as one compiled scan, and 50 calls of the jitted network forward, both at the
same batch size. The sampler draws its starting noise and does its arithmetic besides.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from samplers.sampler import sample_keys
from training.cli import load_experiment
from training.run import example_batch
from training.startup import start
from training.step import named_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="digits_ddpm")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    start()
    experiment = load_experiment(options.experiment)
    model, shape = experiment.resolved_model(), experiment.data.shape
    variables = jax.jit(model.init)(jax.random.key(0), example_batch(experiment, 2))
    sampler = Diffusion(solver=DDIM(eta=0.0), steps=options.steps)
    keys = sample_keys(named_key(0, "sample"), jnp.arange(options.n))
    x, t = jnp.zeros((options.n, *shape)), jnp.full((options.n,), 0.5)
    draw = jax.jit(lambda variables, keys: sampler(model, variables, keys, None, shape).x)
    forward = jax.jit(lambda variables, x, t: model.net.apply({"params": variables["params"]}, x, t))

    def scan() -> None:
        draw(variables, keys).block_until_ready()

    def calls() -> None:
        for _ in range(options.steps):
            out = forward(variables, x, t)
        out.block_until_ready()

    def seconds(function) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    scan(), calls()
    pairs = [(seconds(scan), seconds(calls)) for _ in range(options.rounds)]
    scanned, called = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{options.experiment}, {options.n} samples, {options.steps} DDIM steps: scan {1e3 * scanned:.1f} ms, "
        f"{options.steps} network calls {1e3 * called:.1f} ms, "
        f"ratio median {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
