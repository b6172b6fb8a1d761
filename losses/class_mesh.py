"""A head's work over a mesh: W's rows over one axis, the examples over the axes of the batch.

    (1)  n devices along W's axis, p along the batch's other axes: of B × C logits each device has B/p × C/n
    (2)  what is said of an example is added up over W's axis: sums over classes, ∂L/∂u, ∂L/∂bias
    (3)  what is said of W is added up over the batch's other axes: ∂L/∂W

W's axis may be one of the batch's, too: the examples along it are gathered, for each has to meet all rows, and of (2) a
device keeps what is of its own examples. Examples that the mesh does not divide are whole on every device (p = 1), and
along any further axis the same is done again. (2) and (3) are in losses/class_sums.py, the rest is here.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from models.sharding import axes_dividing


class Split(Enum):
    """How an array is split over the mesh."""

    ROWS = auto()  # as W is
    EXAMPLES = auto()  # as the batch is
    NOT = auto()


def over_mesh(
    axis: str, local: Callable[[tuple[str, ...]], Callable[..., Any]], given: Any, found: Any
) -> Callable[..., Any]:
    """A function of each device's rows of W and its part of the examples, as one of whole arrays.

    Args:
      axis: of the ambient mesh, that W's rows are split over.
      local: the function, given the other axes that examples are split over: those p devices are along.
      given: how each of its arguments is split; the first one has a row an example.
      found: how each of its results is.
    """

    def whole(*arguments: Any) -> Any:
        axes = axes_dividing(arguments[0].shape[0])
        function = local(tuple(other for other in axes if other != axis))
        places = {Split.ROWS: P(axis), Split.EXAMPLES: P(axes), Split.NOT: P()}
        return jax.shard_map(
            met_by_all(function, axis, given, found) if axis in axes else function,
            in_specs=jax.tree.map(places.__getitem__, given),
            out_specs=jax.tree.map(places.__getitem__, found),
            check_vma=False,
        )(*arguments)

    return whole


def met_by_all(function: Callable[..., Any], axis: str, given: Any, found: Any) -> Callable[..., Any]:
    """`function` of the examples of all devices along an axis; of its results each device keeps its own examples'."""

    def gathered(split: Split, part: Any) -> Any:
        return jax.lax.all_gather(part, axis, tiled=True) if split is Split.EXAMPLES else part

    def kept(split: Split, part: Any) -> Any:
        return own(part, axis, part.shape[0] // jax.lax.axis_size(axis)) if split is Split.EXAMPLES else part

    return lambda *parts: jax.tree.map(kept, found, function(*jax.tree.map(gathered, given, parts)))


def own(array: Array, axes: str | tuple[str, ...], size: int) -> Array:
    """This device's part of an array that has a part of `size` rows for each device along some axes."""
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(axes) * size, size)
