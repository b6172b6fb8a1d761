"""Drawing grids of tokens from a PixelCNN, by steps with a cache and by reading the whole grid for every token.

    python benchmarks/pixelcnn.py [--grid 28] [--rounds 5]

Sides take turns; medians and quartiles. On 28×28 the slow side takes about a minute in all.
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
from models.language_model import LanguageModel
from models.pixelcnn import PixelCNN
from samplers.autoregressive import Decoding
from training.startup import start

VOCABULARY, SIZE = 256, 4
NET = PixelCNN(width=32, depth=4)


def naive(model: LanguageModel, variables: Any, keys: Any, total: int) -> Any:
    """Decoding without a cache."""

    def step(x: Any, place: Any) -> tuple[Any, None]:
        logits = model.apply(variables, x[:, :-1])
        own = jax.lax.dynamic_index_in_dim(logits, place, 1, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(x, Decoding().choose(own, keys, place), place, 1), None

    return jax.lax.scan(step, jnp.zeros((SIZE, total), jnp.int32), jnp.arange(total))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=28, help="rows, and as many columns")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    start()
    total = options.grid**2
    model = LanguageModel(backbone=NET.clone(grid=(options.grid, options.grid)), vocabulary=VOCABULARY, from_start=True)
    variables = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((SIZE, total), jnp.int32)})
    keys = jax.random.split(jax.random.key(1), SIZE)
    sides = {
        "with a cache": jax.jit(lambda v: Decoding()(model, v, keys, None, (total,)).x),
        "without": jax.jit(lambda v: naive(model, v, keys, total)),
    }
    found: dict[str, np.ndarray] = {}
    runs = [lambda name=name: found.update({name: np.asarray(sides[name](variables))}) for name in sides]
    seconds = interleaved(runs, options.rounds)
    print(f"{jax.devices()[0].device_kind}, float32: {SIZE} grids of {options.grid}×{options.grid} tokens, ", end="")
    print(f"{NET.depth} layers of {NET.width} behind the first")
    for name, column in zip(sides, seconds.T, strict=True):
        print(f"    {name:12} {quartiles(column)} s")
    alike = np.mean(found["with a cache"] == found["without"])
    print(f"    ×{np.median(seconds[:, 1] / seconds[:, 0]):.0f}; {100 * alike:.1f} % of tokens alike")


if __name__ == "__main__":
    main()
