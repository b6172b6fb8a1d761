"""Makes tests/torch_arrays.npz, what PyTorch answers on small inputs: `python benchmarks/torch_arrays.py`.

Each case holds its weights by PyTorch's names, its inputs, its outputs and the gradients of Σ outputs². The tests read
the file, so that they need no PyTorch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

BATCH, STEPS, INPUTS, WIDTH, HEADS = 3, 5, 4, 8, 2


def case(name: str, module: Any, inputs: dict[str, torch.Tensor], call: Any) -> dict[str, np.ndarray]:
    for tensor in inputs.values():
        tensor.requires_grad_()
    out = call(module, **inputs)
    (out**2).sum().backward()
    found = {f"weight/{key}": value for key, value in module.named_parameters()}
    found |= {f"weight_gradient/{key}": value.grad for key, value in module.named_parameters()}
    found |= {f"input/{key}": value for key, value in inputs.items()}
    found |= {f"input_gradient/{key}": value.grad for key, value in inputs.items()}
    found["output"] = out
    return {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}


def main() -> None:
    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {"version": np.asarray(torch.__version__)}
    x = lambda width=INPUTS, steps=STEPS: torch.randn(BATCH, steps, width)
    for name, cls in (("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)):
        for ending, settings in (("", {}), ("_deep", {"num_layers": 2, "bidirectional": True})):
            hidden = WIDTH // (2 if settings else 1)
            module = cls(INPUTS, hidden, batch_first=True, **settings)
            arrays |= case(name + ending, module, {"x": x()}, lambda module, x: module(x)[0])
    causal = nn.Transformer.generate_square_subsequent_mask(STEPS)
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    arrays |= case("attention", attention, {"x": x(WIDTH)}, lambda m, x: m(x, x, x, attn_mask=causal)[0])
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    inputs = {"x": x(WIDTH), "memory": x(WIDTH, 7)}
    arrays |= case("cross_attention", attention, inputs, lambda m, x, memory: m(x, memory, memory)[0])
    for name, first in (("post", False), ("pre", True)):
        settings = {"dropout": 0.0, "batch_first": True, "norm_first": first}
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, activation="relu", **settings)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases begin at one and zero
        inputs = {"x": x(WIDTH), "memory": x(WIDTH, 7)}
        arrays |= case(f"layer_{name}", layer, inputs, lambda m, x, memory: m(x, memory, tgt_mask=causal))
    path = Path(__file__).resolve().parent.parent / "tests" / "torch_arrays.npz"
    np.savez_compressed(path, **arrays)
    print(f"wrote {len(arrays)} arrays of PyTorch {torch.__version__} to {path.name}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
