"""What metrics over examples share: equal batches, a key each, the mean with its standard error, and names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from data.dataset import Arrays
from metrics.metric import Evaluation, Metric
from models.denoiser import Denoiser
from models.model import Condition, Model, Variables
from models.sharding import batch_axes, made_whole, spread
from models.stack import BLOCKS
from samplers.sampler import sample_keys

PerExample = Callable[[Variables, dict[str, Array], Key[Array, " b"]], Any]  # (variables, batch, keys) → leaves [b, …]


def denoiser(model: Model, metric: str) -> Denoiser:
    """`model`, if it is one whose density a path gives.

    Raises:
      ValueError: it is another kind of model; says which.
    """
    if not isinstance(model, Denoiser):
        raise ValueError(f"{metric} is measured on a Denoiser; this run's model is {type(model).__name__}")
    return model


def condition_of(model: Denoiser, batch: Mapping[str, Array]) -> Condition:
    """Each example's own class, for a model conditioned on classes and data that has them."""
    return {"label": batch["label"]} if is_conditional(model, batch) else None


def is_conditional(model: Model, batch: Mapping[str, Any]) -> bool:
    """Whether a model is told each example's own class: it takes one, and the data has it."""
    return bool(getattr(model, "num_classes", 0)) and "label" in batch


def over_examples(function: PerExample, variables: Variables, examples: Arrays, seed: int, batch_size: int) -> Any:
    """`function` over all examples, jitted once, as host arrays with the examples on the leading axis.

    Example i has the key fold_in(key(seed), i), so its number depends neither on the batch nor on the devices. Batches
    are split over the devices that hold the variables.
    """
    n = len(examples["x"])
    split = _batch_sharding(variables)
    size = min(batch_size, n)
    size += -size % (split.num_devices if split else 1)

    def of_batch(variables: Variables, batch: dict[str, Array], indices: Int[Array, " b"]) -> Any:
        keys = sample_keys(jax.random.key(seed), indices)
        if split is None:
            return function(variables, batch, keys)
        with jax.sharding.use_abstract_mesh(split.mesh.abstract_mesh):
            return function(made_whole(variables, but=BLOCKS), batch, keys)

    # Whole on every device: each process has all of it then, and not only what its own devices have computed.
    whole = NamedSharding(split.mesh, PartitionSpec()) if split else None
    jitted = jax.jit(of_batch, out_shardings=whole)
    parts = []
    for start in range(0, n, size):
        indices = np.arange(start, start + size, dtype=np.int32)
        within = np.minimum(indices, n - 1)  # the last batch is padded: one compilation
        batch = {name: value[within] for name, value in examples.items()}
        given = spread((batch, indices), split) if split else (batch, indices)
        parts.append(jax.device_get(jitted(variables, *given)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def _batch_sharding(variables: Variables) -> NamedSharding | None:
    sharding = getattr(next(iter(jax.tree.leaves(variables)), None), "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(batch_axes(sharding.mesh)))


def mean_and_error(name: str, values: Float[np.ndarray, " n"]) -> dict[str, float]:
    """The mean over examples and the standard error of that mean."""
    values = np.asarray(values, np.float64)
    return {name: float(values.mean()), f"{name}_stderr": float(values.std(ddof=1) / np.sqrt(len(values)))}


def named(numbers: Mapping[str, Any], split: str, given: bool = False) -> dict[str, float]:
    """Numbers by names that say of what they are: they end in `_given_label` if classes were told, then `_of_train`."""
    end = ("_given_label" if given else "") + ("_of_train" if split == "train" else "")
    return {name + end: float(value) for name, value in numbers.items()}


@dataclass(frozen=True, kw_only=True)
class OverExamples(Metric):
    """Base of the metrics that are a mean over the first examples of a split; names end as those of `named`."""

    examples: int = 1000  # the first so many of the split
    split: Literal["train", "test"] = "test"
    batch_size: int = 100  # examples measured at once
    seed: int = 0  # decides all noise

    def __post_init__(self) -> None:
        if self.examples < 2 or self.batch_size < 1 or not 0 <= self.seed < 2**31:
            raise ValueError(
                f"{type(self).__name__}: examples must be at least 2 (for a standard error), batch_size at least 1 and "
                f"seed in [0, 2^31); got {self.examples}, {self.batch_size} and {self.seed}"
            )

    def over(self, function: PerExample, evaluation: Evaluation, arrays: Arrays) -> Any:
        """`over_examples` with these settings."""
        return over_examples(function, evaluation.variables, arrays, self.seed, self.batch_size)
