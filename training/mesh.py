"""Where arrays live: a mesh of devices, the batch split over it, the state on all of it or split where a model says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Data parallelism over devices."""

    data: int = 0  # devices the batch is split over; 0 takes all there are

    def build(self) -> jax.sharding.Mesh:
        available = jax.device_count()
        if not 0 <= self.data <= available:
            raise ValueError(f"mesh.data={self.data}, but there are {available} devices")
        size = self.data or available
        # Explicit axes, the default since jax 0.9, do not suit Linen's dropout.
        return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def placed(shapes: Any, mesh: jax.sharding.Mesh, split: Mapping[str, str], or_whole: bool = False) -> Any:
    """A sharding for every leaf: split by rows where the last part of its name says so (`Model.split`), else whole.

    Args:
      or_whole: what cannot be split on this mesh is whole, too.

    Raises:
      ValueError: the mesh has no such axis, or it does not divide the rows.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        axis = split.get(getattr(path[-1], "key", "")) if path else None
        divides = axis in mesh.axis_names and leaf.shape[0] % mesh.shape[axis] == 0
        if axis is None or (or_whole and not divides):
            return replicated(mesh)
        if axis not in mesh.axis_names:
            raise ValueError(f"the mesh has no axis {axis!r}; it has {', '.join(mesh.axis_names)}")
        if leaf.shape[0] % mesh.shape[axis]:
            raise ValueError(f"{leaf.shape[0]} rows do not divide over the {mesh.shape[axis]} devices of {axis!r}")
        return NamedSharding(mesh, PartitionSpec(axis))

    return jax.tree_util.tree_map_with_path(place, shapes)


def by_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
    """This process's share of a batch, as the jitted step takes it: global arrays.

    A single process hands its host arrays over as they are: the jitted call's own transfer is quicker than device_put.
    """
    if jax.process_count() == 1:
        return batch
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
