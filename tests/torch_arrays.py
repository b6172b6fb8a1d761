"""What PyTorch answered on small inputs (benchmarks/torch_arrays.py), and its weights in our layout."""

from functools import cache
from pathlib import Path

import numpy as np


@cache
def torch_case(name):
    """One case: its arrays by `weight`, `input`, their gradients, and `output`."""
    found = {}
    with np.load(Path(__file__).with_name("torch_arrays.npz")) as arrays:
        for key in arrays.files:
            case, _, rest = key.partition("/")
            if case == name:
                kind, _, leaf = rest.partition("/")
                if leaf:
                    found.setdefault(kind, {})[leaf] = arrays[key]
                else:
                    found[kind] = arrays[key]
    return found


def dense(weights, prefix):
    """PyTorch keeps a layer's matrix transposed."""
    return {"kernel": weights[f"{prefix}weight"].T, "bias": weights[f"{prefix}bias"]}


def norm(weights, prefix):
    return {"scale": weights[f"{prefix}weight"], "bias": weights[f"{prefix}bias"]}


def recurrent(weights, depth, bidirectional, gates):
    """PyTorch has two biases where all but the GRU's last need one."""
    params = {}
    for layer in range(depth):
        for direction, ending in (("forwards", ""), ("backwards", "_reverse"))[: 1 + bidirectional]:
            own = lambda name: weights[f"{name}_l{layer}{ending}"]  # noqa: B023, E731
            first, second = own("bias_ih"), own("bias_hh")
            hidden = second.shape[0] // gates
            name = f"{direction}_{layer}"
            params[f"{name}_kernel"], params[f"{name}_recurrent_kernel"] = own("weight_ih").T, own("weight_hh").T
            if gates == 3:
                params[f"{name}_bias_after"] = second[2 * hidden :]
                second = np.concatenate([second[: 2 * hidden], np.zeros(hidden, np.float32)])
            params[f"{name}_bias"] = first + second
    return params
