"""A DiT beside the U-Net of as many parameters: a whole training step, `python benchmarks/dit.py [--rounds 10]`.

Both on 28×28 images of ten classes, batch 64, Adam and averaging included, without and with checkpointed blocks. Sides
take turns; medians and quartiles.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Timed, interleaved, quartiles
from losses.flow_matching import FlowMatching
from models.denoiser import Denoiser
from models.dit import DiT
from models.model import Net
from models.unet import UNet
from paths.schedules import Rectified
from training.optimizer import Optimizer
from training.startup import start
from training.state import initial_state
from training.step import make_train_step

BATCH = 64
DIT = {"width": 192, "depth": 4, "heads": 6, "patch": 4, "num_classes": 10}  # mnist_flow's
UNET = {"width": 40, "multipliers": (1, 2, 2), "blocks": 2, "attention": (14,), "num_classes": 10}


def training_step(net: Net, dtype: str) -> tuple[Timed, int]:
    """A function that takes one step and waits, and the number of parameters."""
    model = Denoiser(net=net.clone(dtype=dtype), path=Rectified(), predicts="velocity")
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(BATCH, 28, 28, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, BATCH), jnp.int32),
    }
    optimizer = Optimizer().build(1000)
    state = jax.jit(lambda key: initial_state(model, optimizer, key, batch))(jax.random.key(0))
    step = make_train_step(model, FlowMatching(label_dropout=0.1), optimizer, seed=0, ema=0.999)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    held = [state]

    def once() -> None:
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready(metrics)

    return once, sum(leaf.size for leaf in jax.tree.leaves(state.params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    start()
    nets: dict[str, Net] = {}
    for remat in ("none", "full"):
        nets[f"DiT, remat {remat}"] = DiT(**DIT, remat=remat)
        nets[f"U-Net, remat {remat}"] = UNet(**UNET, remat=remat)
    steps = {name: training_step(net, options.dtype) for name, net in nets.items()}
    seconds = interleaved([step for step, _ in steps.values()], options.rounds)
    print(f"{jax.devices()[0].device_kind}, batch {BATCH} of 28x28, {options.dtype}")
    medians = dict(zip(steps, np.median(seconds, axis=0), strict=True))
    for (name, (_, parameters)), column in zip(steps.items(), seconds.T, strict=True):
        print(f"{name:20} {parameters / 1e6:5.2f} M parameters  {quartiles(1e3 * column)} ms a step")
    dit, unet = (min(time for name, time in medians.items() if name.startswith(kind)) for kind in ("DiT", "U-Net"))
    print(f"the U-Net's step over the DiT's, each with the remat that is quicker: x{unet / dit:.2f}")


if __name__ == "__main__":
    main()
