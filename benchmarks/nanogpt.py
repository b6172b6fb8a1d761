"""nanoGPT's CPU setting here and in PyTorch: `python benchmarks/nanogpt.py FILE [--steps 2000] [--seed 0]`.

4 layers, 4 heads, width 128, context 64, batches of 12, no dropout, on a text file's first 90 %; PyTorch's model is
written as nanoGPT's is (fused attention, one product for q, k and v, exact gelu), eager. Both begin with the same
parameters and read the same batches, turn by turn in runs of `--turn` steps; ours is the whole train step of train.py,
its compilation counted. Printed: seconds of each, and the loss on the held-out 10 % in windows of the context.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from metrics.token_likelihood import TokenLikelihood
from training.cli import load_experiment
from training.measure import evaluation_of
from training.mesh import put_batch
from training.plan import Plan
from training.startup import start


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        size, steps, width = h.shape
        split = lambda y: y.view(size, steps, self.heads, -1).transpose(1, 2)
        q, k, v = map(split, self.qkv(self.first(h)).split(width, dim=2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(y.transpose(1, 2).reshape(size, steps, width))
        return h + self.down(functional.gelu(self.up(self.second(h))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks, self.last = (
            nn.ModuleList([Block(width, heads) for _ in range(depth)]),
            nn.LayerNorm(width, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.table(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.last(h) @ self.table.weight.T

    def begin_as(self, params: Any) -> None:
        """Our parameters."""
        own = params["backbone"]
        layers = own["layers"]["blocks"]
        found = {"table.weight": params["embedding"]["table"], "places.weight": own["positions"]}
        found["last.weight"] = own["last"]["scale"]
        for i in range(len(self.blocks)):
            leaf = lambda *path: jax.tree.map(lambda leaf: leaf[i], layers)[path[0]][path[1]]
            found[f"blocks.{i}.first.weight"] = leaf("before_attention", "scale")
            found[f"blocks.{i}.second.weight"] = leaf("before_feed_forward", "scale")
            for name, path in (("qkv", ("attention", "qkv")), ("out", ("attention", "out"))):
                found[f"blocks.{i}.{name}.weight"] = leaf(*path)["kernel"].T
            for name in ("up", "down"):
                found[f"blocks.{i}.{name}.weight"] = leaf("feed_forward", name)["kernel"].T
        self.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in found.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--turn", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start()
    jax.config.update("jax_enable_compilation_cache", False)
    experiment = load_experiment("char_transformer", preset="nanogpt_cpu")
    data = replace(experiment.data, path=str(options.file))
    experiment = replace(experiment, data=data, steps=options.steps, seed=options.seed).pinned()
    seconds = {"ours": 0.0, "PyTorch": 0.0}
    began = time.perf_counter()
    plan = Plan(experiment)
    state = plan.initial()
    seconds["ours"] = time.perf_counter() - began
    backbone: Any = experiment.model.backbone
    model = GPT(data.vocabulary, backbone.width, backbone.depth, backbone.heads, data.context)
    model.begin_as(state.params)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": experiment.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(experiment.optimizer.b1, experiment.optimizer.b2))
    rate = experiment.optimizer.schedule(options.steps)
    rates = [float(rate(step)) for step in range(options.steps)]
    began = time.perf_counter()
    state, metrics = plan.train_step(state, put_batch(plan.batches[0], plan.batch_sharding))
    jax.block_until_ready(metrics)
    seconds["ours"] += time.perf_counter() - began
    print(f"compiling and the first step here: {seconds['ours']:.1f} s")

    def torch_step(step: int) -> None:
        x = torch.tensor(plan.batches[step]["x"]).long()
        logits = model(x[:, :-1])
        loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), experiment.optimizer.clip)
        for group in adam.param_groups:
            group["lr"] = rates[step]
        adam.step()
        loss.item()

    began = time.perf_counter()
    torch_step(0)
    seconds["PyTorch"] = time.perf_counter() - began
    for first in range(1, options.steps, options.turn):
        steps = range(first, min(first + options.turn, options.steps))
        began = time.perf_counter()
        for step in steps:
            state, metrics = plan.train_step(state, put_batch(plan.batches[step], plan.batch_sharding))
            jax.block_until_ready(metrics)
        seconds["ours"] += time.perf_counter() - began
        began = time.perf_counter()
        for step in steps:
            torch_step(step)
        seconds["PyTorch"] += time.perf_counter() - began
    evaluation = evaluation_of(
        plan.model, {"params": state.average, "state": {}}, experiment.data, lambda n: np.zeros(n)
    )
    ours = TokenLikelihood(examples=10_000, batch_size=200)(evaluation)["nats_per_token"]
    x = torch.tensor(experiment.data.arrays("test", 10_000)["x"]).long()
    with torch.no_grad():
        logits = torch.cat([model(part[:, :-1]) for part in x.split(200)])
    theirs = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1)).item()
    ratio = seconds["ours"] / seconds["PyTorch"]
    print(f"ours     {seconds['ours']:6.1f} s, {ours:.4f} nats a character")
    print(f"PyTorch  {seconds['PyTorch']:6.1f} s, {theirs:.4f} nats a character")
    print(f"ours over PyTorch's time: x{ratio:.3f}")


if __name__ == "__main__":
    main()
