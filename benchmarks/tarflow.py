"""TarFlow's inverse with kept keys and values beside the naive one: `python benchmarks/tarflow.py [--rounds 5]`.

8 images of 16×16 in patches of 4, 2 and 1: 16, 64 and 256 tokens. Two blocks, each a network of two layers, 32 wide.
The naive inverse runs a block's whole network for every token. Sides take turns; medians and quartiles.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Timed, interleaved, quartiles
from models.flows.causal import CausalTransformer
from models.flows.tarflow import TarFlow
from training.startup import start

BATCH, SIDE, PATCHES = 8, 16, (4, 2, 1)
NET = CausalTransformer(width=32, depth=2, heads=2)


def sides(patch: int) -> list[Timed]:
    """Functions that invert the flow on a batch and wait: cached, naive. They must agree."""
    z = jax.random.normal(jax.random.key(0), (BATCH, SIDE, SIDE, 1))
    flow = TarFlow(patch=patch, blocks=2, net=NET)
    rng = np.random.default_rng(0)
    # A network that says 0 makes every inverse right.
    moved = lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(np.float32)
    params = jax.tree.map(moved, jax.jit(flow.init)(jax.random.key(1), z))
    flows = (flow, TarFlow(patch=patch, blocks=2, net=NET, cached=False))
    compiled = [jax.jit(each.inverse).lower(params, z).compile() for each in flows]
    x, again = (run(params, z)[0] for run in compiled)
    np.testing.assert_allclose(x, again, atol=1e-3)
    assert float(jnp.abs(x - z).max()) > 0.1
    return [lambda run=run: jax.block_until_ready(run(params, z)) for run in compiled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    start()
    print(f"{jax.devices()[0].device_kind}, {BATCH} of {SIDE}x{SIDE}, float32")
    for patch in PATCHES:
        seconds = interleaved(sides(patch), options.rounds)
        cached, naive = np.median(seconds, axis=0)
        print(f"{(SIDE // patch) ** 2:4} tokens, cached {quartiles(1e3 * seconds[:, 0])} ms")
        print(f"             naive  {quartiles(1e3 * seconds[:, 1])} ms, x{naive / cached:.1f}")


if __name__ == "__main__":
    main()
