"""How a model's arrays lie on a mesh of devices, and how its layers ask for them.

    (1)  the examples of a batch are split over the axes `BATCH_AXES`, and with them all that is computed of them
    (2)  a parameter that is stored in parts over fsdp is made whole where it is used, a layer of a `Stack` at a time
                                                                                          ZeRO-3, 1910.02054 §5
    (3)  what a model names is computed in parts: of two products in a row the first is split by what it gives, the
         second by what it takes, and their sum alone is communicated                     Megatron-LM, 1909.08053 §3

Without (2) it would be left to the partitioner, which at times moves the activations instead, and more of them.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
FSDP = "fsdp"
Split = Mapping[str, tuple[str | None, ...]]  # the end of a variable's name: the mesh axis of each of its last axes
WIDTHS: Split = {
    **{f"{layer}/kernel": (None, "model") for layer in ("up", "gate", "attention/qkv", "cross_attention/q")},
    **{f"{layer}/bias": ("model",) for layer in ("up", "gate", "attention/qkv", "cross_attention/q")},
    **{f"{layer}/kernel": ("model", None) for layer in ("down", "attention/out", "cross_attention/out")},
    "cross_attention/kv/kernel": (None, "model"),
    "cross_attention/kv/bias": ("model",),
}


def batch_axes(mesh: Any) -> tuple[str, ...]:
    """Those of `BATCH_AXES` that a mesh (or an abstract one) has."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)


def axes_dividing(examples: int) -> tuple[str, ...]:
    """Those of `BATCH_AXES` along which the ambient mesh has several devices; none where they do not divide them."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    return axes if examples % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def spread(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays that every process has, as global ones: each hands over what its own devices hold."""
    put = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])  # noqa: E731
    return jax.tree.map(put, tree)


def axes_of(path: Any, ndim: int, split: Split) -> list[str | None]:
    """The mesh axis of each axis of a variable, by its name; None where it is not split."""
    name = f"/{jax.tree_util.keystr(path, simple=True, separator='/')}"
    found = next((axes for key, axes in split.items() if name.endswith(f"/{key}")), ())
    return [*[None] * (ndim - len(found)), *found] if len(found) <= ndim else [None] * ndim


def made_whole(variables: Any, split: Split = WIDTHS, but: str = "") -> Any:
    """Eq. (2), of the ambient mesh: variables as they are computed with. What is split by its name stays so.

    Args:
      but: variables with such a part in their name are left as they are: they are asked for later, a layer at a time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(FSDP, 1) == 1:
        return variables

    def whole(path: Any, leaf: jax.Array) -> jax.Array:
        if but and any(getattr(part, "key", None) == but for part in path):
            return leaf
        axes = axes_of(path, leaf.ndim, split)
        there = [
            a if a in mesh.axis_names and n % mesh.shape[a] == 0 else None
            for a, n in zip(axes, leaf.shape, strict=True)
        ]
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*there))

    return jax.tree_util.tree_map_with_path(whole, variables)
