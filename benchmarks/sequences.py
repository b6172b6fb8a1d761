"""Sequence models beside PyTorch, decoding with a cache and without, cross-entropy over a large vocabulary.

    python benchmarks/sequences.py [train] [products] [decode] [cross_entropy] [--rounds 9]

Training is the whole step: forward, backward, clipping, Adam. Sides take turns; medians and quartiles. PyTorch is
eager, its transformer benchmarks/nanogpt.py's and its LSTM `torch.nn.LSTM`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Timed, interleaved, quartiles
from losses.sequence import NextToken, token_cross_entropy
from models.language_model import LanguageModel
from models.rnn import LSTM
from models.transformer import Transformer
from samplers.autoregressive import Decoding
from training.optimizer import Optimizer
from training.startup import start
from training.state import initial_state
from training.step import make_train_step

VOCABULARY, STEPS = 256, 128
GPT2 = Transformer(width=256, depth=4, heads=4, context=STEPS, positions="learned", bias=False)
MODELS = {
    "transformer, 4 layers of 256": (LanguageModel(backbone=GPT2, vocabulary=VOCABULARY), 16),
    "LSTM of 512": (LanguageModel(backbone=LSTM(width=512), vocabulary=VOCABULARY, tied=False), 32),
}


def our_step(model: LanguageModel, x: np.ndarray) -> Timed:
    batch = {"x": jnp.asarray(x, jnp.int32)}
    optimizer = Optimizer(learning_rate=1e-3).build(1000)
    state = jax.jit(lambda key: initial_state(model, optimizer, key, batch))(jax.random.key(0))
    step = make_train_step(model, NextToken(), optimizer, seed=0, ema=0.99)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    held = [state]

    def once() -> None:
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready(metrics)

    return once


def torch_step(model: LanguageModel, x: np.ndarray) -> Timed:
    import torch
    from torch import nn
    from torch.nn import functional

    from benchmarks.nanogpt import GPT

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
            self.lstm = nn.LSTM(width, width, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.out(self.lstm(self.table(x))[0])

    backbone: Any = model.backbone
    transformer = isinstance(backbone, Transformer)
    net = GPT(VOCABULARY, backbone.width, backbone.depth, backbone.heads, STEPS) if transformer else Net(backbone.width)
    adam, tokens = torch.optim.AdamW(net.parameters(), lr=1e-3), torch.tensor(x).long()

    def once() -> None:
        logits = net(tokens[:, :-1])
        loss = functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        loss.item()

    return once


def training(rounds: int) -> None:
    rng = np.random.default_rng(0)
    for name, (model, size) in MODELS.items():
        x = rng.integers(0, VOCABULARY, (size, STEPS + 1))
        seconds = interleaved([our_step(model, x), torch_step(model, x)], rounds)
        ours, theirs = np.median(seconds, axis=0)
        tokens = size * STEPS
        print(f"{name}, {size} sequences of {STEPS}: tokens/s {tokens / ours:,.0f}, {tokens / theirs:,.0f} in PyTorch")
        print(f"    a step {quartiles(1e3 * seconds[:, 0])} ms here, {quartiles(1e3 * seconds[:, 1])} ms in PyTorch")
        print(f"    ours over PyTorch's time: x{np.median(seconds[:, 0] / seconds[:, 1]):.2f}")


def whole(model: LanguageModel, variables: Any, keys: Any, prompt: Any, total: int) -> Any:
    """Decoding without a cache: the whole sequence is read anew for every token."""
    x = jnp.pad(prompt, ((0, 0), (0, total - prompt.shape[1])))

    def step(x: Any, place: Any) -> tuple[Any, None]:
        logits = model.apply(variables, x)
        own = jax.lax.dynamic_index_in_dim(logits, place - 1, 1, keepdims=False)
        token = Decoding().choose(own, keys, place)
        return jax.lax.dynamic_update_index_in_dim(x, token, place, 1), None

    return jax.lax.scan(step, x, jnp.arange(prompt.shape[1], total))[0]


def decoding(rounds: int) -> None:
    net, total, size = GPT2.clone(context=0, positions="rotary"), 256, 8
    model = LanguageModel(backbone=net, vocabulary=VOCABULARY)
    prompt, keys = jnp.zeros((size, 1), jnp.int32), jax.random.split(jax.random.key(0), size)
    variables = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((size, total), jnp.int32)})
    cached = jax.jit(lambda v: Decoding(length=total)(model, v, keys, {"prompt": prompt}, (total,)).x)
    naive = jax.jit(lambda v: whole(model, v, keys, prompt, total))
    same = float(np.mean(np.asarray(cached(variables)) == np.asarray(naive(variables))))
    runs = [lambda f=f: jax.block_until_ready(f(variables)) for f in (cached, naive)]
    seconds = np.median(interleaved(runs, max(3, rounds // 3)), axis=0)
    rates = size * (total - 1) / seconds
    print(f"{size} samples of {total} tokens: {rates[0]:,.0f} tokens/s with a cache, {rates[1]:,.0f} without: ", end="")
    print(f"x{rates[0] / rates[1]:.1f} ({100 * same:.1f} % of tokens alike)")


def cross_entropy(rounds: int) -> None:
    size, steps, width, vocabulary = 4, 512, 256, 50_257
    h = jax.random.normal(jax.random.key(0), (size, steps, width))
    table = 0.02 * jax.random.normal(jax.random.key(1), (vocabulary, width))
    targets = jax.random.randint(jax.random.key(2), (size, steps), 0, vocabulary)
    compiled = {}
    for name, places in {"whole": 0, "in runs of 64 places": 64}.items():
        loss = lambda h, table, places=places: jnp.mean(
            token_cross_entropy(lambda h: h @ table.T, h, targets, 0.0, places)[1]
        )
        compiled[name] = jax.jit(jax.grad(loss, (0, 1))).lower(h, table).compile()
    found = [f(h, table) for f in compiled.values()]
    gap = max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in zip(*found, strict=True))
    runs = [lambda f=f: jax.block_until_ready(f(h, table)) for f in compiled.values()]
    seconds = np.median(interleaved(runs, max(3, rounds // 3)), axis=0)
    for (name, f), time in zip(compiled.items(), seconds, strict=True):
        memory = f.memory_analysis().temp_size_in_bytes / 2**20
        print(f"gradient of {size * steps} tokens over {vocabulary:,}, {name:22} {memory:8.0f} MiB  {time:.2f} s")
    print(f"largest difference of the gradients, over the largest entry: {gap:.1e}")


def products(rounds: int) -> None:
    """What an LSTM's step is made of, here and in PyTorch: the reason for most of what remains."""
    import torch

    rng = np.random.default_rng(0)
    array = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, g, step, w = array(32 * STEPS, 512), array(32 * STEPS, 2048), array(32, 512), array(512, 2048)
    cases = {"x·W, all steps": (x, w), "h·U, one step": (step, w), "Xᵀ·G, the gradient": (np.ascontiguousarray(x).T, g)}
    for name, (a, b) in cases.items():
        # Transposed inside, as in a backward pass: the array at hand is x.
        turned = not a.flags["C_CONTIGUOUS"]
        own, other = (
            (jnp.asarray(a.T if turned else a), jnp.asarray(b)),
            (torch.tensor(a.T if turned else a), torch.tensor(b)),
        )
        product = lambda a, b, turned=turned: (a.T if turned else a) @ b
        jitted, times = jax.jit(product), max(1, 20_000_000 // b.size)
        ours = lambda: [jitted(*own).block_until_ready() for _ in range(times)]
        theirs = lambda: [product(*other) for _ in range(times)]
        seconds = np.median(interleaved([ours, theirs], rounds), axis=0) / times
        rates = 2e-9 * a.shape[0] * a.shape[1] * b.shape[1] / seconds
        print(
            f"{name:20} {rates[0]:5.0f} GFLOP/s here, {rates[1]:5.0f} in PyTorch: x{rates[1] / rates[0]:.2f} its time"
        )


PARTS = {"train": training, "products": products, "decode": decoding, "cross_entropy": cross_entropy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    start()
    print(f"{jax.devices()[0].device_kind}, float32")
    for part in options.parts or PARTS:
        PARTS[part](options.rounds)


if __name__ == "__main__":
    main()
