"""Affine couplings in depth, beside distrax, flowjax and normflows: time, compilation and memory.

64 dimensions, conditioners of two hidden layers of 256 units, batches of 512, float32: each library's own affine
coupling and its own way of stacking layers; ours are pairs that move one half and then the other. Prints log-density
and gradient (of its mean, with respect to all parameters) in milliseconds, seconds to trace and compile the gradient,
and what the gradient needs in memory besides its arguments and results (of PyTorch: what autograd keeps). Peers:
`pip install -e '.[bench]'`.

What the four backward passes need against depth is `python reproduce.py backward_memory`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Timed, interleaved
from models.flows.combinators import Chain
from models.flows.conditioners import MLPConditioner
from models.flows.coupling import Coupling
from models.flows.masks import Halves
from models.flows.priors import Normal
from models.flows.stacked import Stacked
from training.startup import keep_freed_memory

D, WIDTH, BATCH = 64, 256, 512


class Side(NamedTuple):
    """One library at one depth."""

    log_prob: Timed
    gradient: Timed
    compile_seconds: float  # of the gradient
    memory: float  # MiB


def compiled(log_prob: Callable[[Any, Any], Any], params: Any, x: Any) -> Side:
    """Both functions of `log_prob(params, x) → [B]`, compiled ahead."""
    forward = jax.jit(log_prob).lower(params, x).compile()
    began = time.perf_counter()
    gradient = compiled_gradient(log_prob, params, x)
    seconds = time.perf_counter() - began
    memory = gradient.memory_analysis().temp_size_in_bytes / 2**20
    run = lambda f: lambda: jax.block_until_ready(f(params, x))
    return Side(run(forward), run(gradient), seconds, memory)


def compiled_gradient(log_prob: Callable[[Any, Any], Any], params: Any, x: Any) -> Any:
    return jax.jit(jax.grad(lambda p, x: -jnp.mean(log_prob(p, x)))).lower(params, x).compile()


def ours(depth: int, x: Any, remat: str = "none") -> Side:
    return compiled(*stacked(depth, x, remat), x)


def stacked(depth: int, x: Any, remat: str = "none") -> tuple[Any, Any]:
    """(log density of (params, x), params)."""
    net = MLPConditioner(width=WIDTH, depth=2)
    pair = Chain(parts=(Coupling(conditioner=net), Coupling(conditioner=net, mask=Halves(swap=True))))
    flow = Stacked(block=pair, depth=depth // 2, remat=remat)

    def log_prob(params: Any, x: Any) -> Any:
        z, logdet = flow.forward(params, x)
        return Normal().log_prob({}, z) + logdet

    return log_prob, jax.jit(flow.init)(jax.random.key(0), x)


def of_distrax(depth: int, x: Any) -> Side:
    import distrax

    half = D // 2
    sizes = (half, WIDTH, WIDTH, 2 * half)

    def init(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        draw = jax.nn.initializers.he_normal()
        return [(draw(k, (i, o)), jnp.zeros(o)) for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def mlp(layers: Any, h: Any) -> Any:
        for w, b in layers[:-1]:
            h = jax.nn.relu(h @ w + b)
        return h @ layers[-1][0] + layers[-1][1]

    def affine(raw: Any) -> Any:
        shift, log_scale = jnp.split(raw, 2, axis=-1)
        return distrax.ScalarAffine(shift=shift, log_scale=jnp.tanh(log_scale))

    def log_prob(params: Any, x: Any) -> Any:
        layers = [
            distrax.SplitCoupling(half, 1, lambda h, p=p: mlp(p, h), affine, swap=bool(i % 2))
            for i, p in enumerate(params)
        ]
        base = distrax.MultivariateNormalDiag(jnp.zeros(D), jnp.ones(D))
        return distrax.Transformed(base, distrax.Inverse(distrax.Chain(layers))).log_prob(x)

    return compiled(log_prob, [init(jax.random.key(i)) for i in range(depth)], x)


def of_flowjax(depth: int, x: Any) -> Side:
    import equinox as eqx
    from flowjax.bijections import Affine
    from flowjax.distributions import Normal as Standard
    from flowjax.flows import coupling_flow

    flow = coupling_flow(
        jax.random.key(0),
        base_dist=Standard(jnp.zeros(D)),
        transformer=Affine(),
        flow_layers=depth,
        nn_width=WIDTH,
        nn_depth=2,
    )
    params, static = eqx.partition(flow, eqx.is_inexact_array)
    return compiled(lambda p, x: eqx.combine(p, static).log_prob(x), params, x)


def of_normflows(depth: int, x: Any) -> Side:
    import normflows
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layers: list[Any] = []
    for _ in range(depth):
        layers.append(normflows.flows.AffineCouplingBlock(normflows.nets.MLP([D // 2, WIDTH, WIDTH, D])))
        layers.append(normflows.flows.Permute(D, mode="swap"))
    model = normflows.NormalizingFlow(normflows.distributions.base.DiagGaussian(D, trainable=False), layers)
    data = torch.tensor(np.asarray(x))

    def forward() -> Any:
        with torch.no_grad():
            return model.log_prob(data)

    def gradient() -> None:
        model.zero_grad()
        (-model.log_prob(data).mean()).backward()

    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.log_prob(data).mean()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return Side(forward, gradient, 0.0, sum(n for at, n in kept.items() if at not in weights) / 2**20)


PEERS = {"distrax": of_distrax, "flowjax": of_flowjax, "normflows": of_normflows}


def beside_peers(depths: list[int], rounds: int) -> None:
    x = jax.random.normal(jax.random.key(1), (BATCH, D))
    here = {name: make for name, make in PEERS.items() if importlib.util.find_spec(name)}
    print(f"{D} dimensions, two hidden layers of {WIDTH}, batch {BATCH}; medians of {rounds} rounds in turn")
    print(f"{'layers':>6}  {'':22}{'log p, ms':>10}{'gradient, ms':>14}{'compile, s':>12}{'memory, MiB':>13}")
    for depth in depths:
        sides = {
            "ours": ours(depth, x),
            "ours, full": ours(depth, x, "full"),
            "ours, reversible": ours(depth, x, "reversible"),
            **{name: make(depth, x) for name, make in here.items()},
        }
        # Twice in a row, of which the second is timed: training repeats one function, and the first run after another
        # library's finds caches, freed memory and waiting threads as that one left them.
        functions = [f for side in sides.values() for f in (side.log_prob, side.gradient) for _ in range(2)]
        times = 1e3 * np.median(interleaved(functions, rounds)[:, 1::2], axis=0).reshape(-1, 2)
        for (name, side), (forward, gradient) in zip(sides.items(), times, strict=True):
            compiling = f"{side.compile_seconds:12.2f}" if side.compile_seconds else f"{'–':>12}"
            print(f"{depth:6}  {name:22}{forward:10.1f}{gradient:14.1f}{compiling}{side.memory:13.1f}", flush=True)


def compile_times(depths: list[int], rounds: int) -> None:
    """Of our gradient at every depth in turn: the ratio is what a noisy machine leaves to be seen."""
    x = jax.random.normal(jax.random.key(1), (BATCH, D))
    flows = [stacked(depth, x) for depth in depths]
    functions = [lambda f=f, p=p: compiled_gradient(f, p, x) for f, p in flows]
    seconds = np.median(interleaved(functions, rounds), axis=0)
    print("ours, remat none, traced and compiled in turn:", end=" ")
    print(", ".join(f"{depth} layers {s:.3f} s" for depth, s in zip(depths, seconds, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--left-alone", action="store_true", help="glibc as it comes: without what the scripts here set, for all sides"
    )
    options = parser.parse_args()
    if any(depth < 2 or depth % 2 for depth in options.depths):
        parser.error(f"--depths {options.depths}: two layers are a pair, so that depths are even")
    if not options.left_alone:
        keep_freed_memory()
    jax.config.update("jax_enable_compilation_cache", False)  # what is read from a disk is not compiled
    print(jax.devices()[0].device_kind)
    beside_peers(options.depths, options.rounds)
    compile_times(options.depths, options.rounds)


if __name__ == "__main__":
    main()
