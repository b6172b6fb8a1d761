"""What a run carries from step to step, and a digest of it."""

import hashlib
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from models.model import Model
from models.sharding import made_whole
from training.distributed import on_host
from training.scaling import Dynamic


@struct.dataclass
class TrainState:
    """All of it a pytree of arrays."""

    step: Any  # steps taken, int32
    params: Any  # float32
    average: Any  # exponential moving average of params: what is sampled from and measured
    optimizer: Any  # optax state
    model: Any  # the model's own `variables["state"]`
    scaling: Any = None  # of the loss (training/scaling.py), where it is scaled


def initial_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    batch: dict[str, Any],
    scaling: Dynamic | None = None,
) -> TrainState:
    """State before the first step; to be jitted or `eval_shape`d by the caller."""
    variables = made_whole(model.init(key, batch), model.split)  # computed whole, whatever is kept of it where
    params = variables["params"]
    return TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        params=params,
        # A copy: donating a state whose two leaves are one buffer is an error.
        average=jax.tree.map(jax.numpy.copy, params),
        optimizer=optimizer.init(params),
        model=variables["state"],
        scaling=scaling.begin() if scaling else None,
    )


def state_digest(state: TrainState) -> str:
    """SHA-256 over every leaf of the state, with its name, shape and dtype; its step is the data's position, too.

    Two runs that ended alike, bit for bit, have equal digests.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(
        jax.tree_util.tree_leaves_with_path(state), key=lambda item: jax.tree_util.keystr(item[0])
    ):
        array = on_host(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
