"""Where arrays live: a grid of devices, what is split over which of its axes, and what each process reads of a batch.

    data    the batch is split over it; parameters are not
    fsdp    the batch is split over it, too; and every large parameter, its average and its optimiser's state, by size
    model   what a model names is split over it (`Model.split`): a head's classes, heads of attention, widths

All three axes are always there, of size 1 where they are not asked for. Splits are of storage; XLA's partitioner
(GSPMD, 2105.04663) finds from them what each device computes and what is communicated. Which numbers come out does not
depend on the mesh but for the order of sums, so a run goes on, and a checkpoint is read, on any.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int

from models.sharding import BATCH_AXES, FSDP, Split, axes_of, batch_axes

AXES = (*BATCH_AXES, "model")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices each axis has. Left alone, it is data parallelism over all there are."""

    data: int = 0  # parts of the batch; 0: as many as the other axes leave devices for
    fsdp: int = 1  # parts of the batch, and of every large parameter with its average and optimiser state
    model: int = 1  # parts of what the model names: its head's classes, heads, widths
    fsdp_from: int = 2**16  # numbers in a parameter from which on it is split over fsdp

    def __post_init__(self) -> None:
        if self.data < 0 or min(self.fsdp, self.model, self.fsdp_from) < 1:
            raise ValueError(f"{self}: data must be at least 0, the others at least 1")

    def build(self, local: bool = False) -> jax.sharding.Mesh:
        """The mesh of all processes' devices, or of this process's alone.

        Raises:
          ValueError: there are too few devices, or some that would be left out hold a process of their own.
        """
        devices = jax.local_devices() if local else jax.devices()
        others = self.fsdp * self.model
        size = (self.data or max(1, len(devices) // others)) * others
        if size > len(devices):
            raise ValueError(
                f"mesh.data={self.data}, mesh.fsdp={self.fsdp}, mesh.model={self.model} are {size} devices, but there "
                f"are {len(devices)} devices"
            )
        if size < len(devices) and jax.process_count() > 1 and not local:
            raise ValueError(f"a mesh of {size} of the {len(devices)} devices leaves out devices of some process")
        shape = (size // others, self.fsdp, self.model)
        # Explicit axes, the default since jax 0.9, do not suit Linen's dropout.
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:size])

    def here(self) -> "Mesh":
        """The same on all devices that are here; where they are no multiple of fsdp·model, the batch alone is split."""
        fits = jax.device_count() % (self.fsdp * self.model) == 0
        return replace(self, data=0) if fits else Mesh()


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def batch_parts(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """How many parts a batch has."""
    return int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)], dtype=int))


def placed(
    shapes: Any,
    mesh: jax.sharding.Mesh,
    split: Split,
    fsdp_from: int = Mesh.fsdp_from,
    or_whole: bool = False,
) -> Any:
    """A sharding for every leaf: as `split` says where its name ends so, and over fsdp along its longest other axis.

    The moments of an optimiser, averages and the like end in the same names as the parameters that they belong to, and
    have their shapes: they are placed alike.

    Args:
      split: `Model.split`, the mesh axis of each of a leaf's last axes.
      fsdp_from: numbers in a leaf from which on it is split over fsdp.
      or_whole: what cannot be split on this mesh as it is named is whole.

    Raises:
      ValueError: the mesh has no such axis, or it does not divide what is to be split.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        axes = _named(path, leaf.shape, mesh, split, or_whole)
        parts = mesh.shape.get(FSDP, 1)
        if parts > 1 and leaf.size >= fsdp_from and FSDP not in axes:
            free = [i for i, size in enumerate(leaf.shape) if axes[i] is None and size % parts == 0]
            if free:  # the last of the longest: layers that are stacked are few, and stand first
                axes[max(free, key=lambda i: (leaf.shape[i], i))] = FSDP
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(place, shapes)


def _named(
    path: Any, shape: tuple[int, ...], mesh: jax.sharding.Mesh, split: Split, or_whole: bool
) -> list[str | None]:
    """The mesh axis of each axis of a leaf, as far as its name tells."""
    axes = axes_of(path, len(shape), split)
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and (axis not in mesh.axis_names or size % mesh.shape[axis]):
            if or_whole:
                return [None] * len(shape)
            if axis not in mesh.axis_names:
                raise ValueError(f"the mesh has no axis {axis!r}; it has {', '.join(mesh.axis_names)}")
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name} {list(shape)}: {size} does not divide over the {mesh.shape[axis]} devices of mesh.{axis}"
            )
    return axes


def abstract(shapes: Any, places: Any) -> Any:
    """Shapes with a place to be restored to: a sharding each."""
    with_place = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # noqa: E731
    return jax.tree.map(with_place, shapes, places)


def bytes_a_device(tree: Any) -> int:
    """What one device holds of the leaves, which have a sharding each."""
    held = lambda leaf: int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)) * leaf.dtype.itemsize  # noqa: E731
    return sum(map(held, jax.tree.leaves(tree)))


def rows_here(sharding: NamedSharding, size: int) -> Int[np.ndarray, " r"]:
    """Which rows of a batch of `size` the devices of this process hold."""
    held = sharding.addressable_devices_indices_map((size,)).values()
    slices = {index[0].indices(size)[:2] for index in held if index}
    return np.unique(np.concatenate([np.arange(*one) for one in slices]))


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> Mapping[str, Any]:
    """This process's rows of a batch (`rows_here`), as the jitted step takes it: global arrays.

    A single process hands its host arrays over as they are: the jitted call's own transfer is quicker than device_put.
    """
    if jax.process_count() == 1:
        return batch
    parts = batch_parts(sharding.mesh)
    here = len(rows_here(sharding, parts))

    def array(value: np.ndarray) -> jax.Array:
        size = len(value) * parts // here
        rows = rows_here(sharding, size)

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            first = int(np.searchsorted(rows, start))
            return value[first : first + stop - start]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, part)

    return {name: array(value) for name, value in batch.items()}
