"""The sum over all other classes of a softmax, in chunks of W's rows, over devices and over a part of the classes.

    (1)  over devices: M = max_d m_d, log Σ e^z = M + log Σ_d l_d·e^{m_d − M}, of each one's (1) of class_chunks.py

The rows are W's, what a step has drawn of them (losses/class_table.py), or a device's part of either
(losses/class_mesh.py); what is done with a chunk of them is in losses/class_chunks.py.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.class_chunks import (
    LOWEST,
    ClassSums,
    Head,
    PerExample,
    Settings,
    chunk_at,
    chunks,
    gradient_of_chunk,
    with_chunk,
)
from losses.class_mesh import Split, over_mesh, own
from losses.class_table import NO_CLASS, Table, sampled, taken

# How they are split; and u, w, bias, label and key.
SPLIT_OF_SUMS = ClassSums._make([Split.EXAMPLES] * 5 + [Split.NOT])
SPLIT_OF_INPUTS = (Split.EXAMPLES, Split.ROWS, Split.EXAMPLES, Split.EXAMPLES, Split.NOT)


def in_shard(settings: Settings, w: Head, label: Int[Array, " b"], key: Key[Array, ""] | None) -> tuple[Table, Any]:
    """This device's table and its examples' classes as it numbers them."""
    size, classes = w.shape[0], settings.classes
    if settings.axis:
        index = jax.lax.axis_index(settings.axis)
        label, classes = label - index * size, classes - index * size
        key = None if key is None else jax.random.fold_in(key, index)
    # Devices that have the same rows have to draw the same ones, whichever examples they have of the batch.
    table = sampled(of_all(settings, label)[0], size, classes, settings.sample, key)
    if settings.batch_axes:
        table = table._replace(place=own(table.place, settings.batch_axes, label.shape[0]))
    return table, label


def forward(settings: Settings, u: Any, w: Any, bias: Any, table: Table, label: Any) -> ClassSums:
    """The sums over a table's rows `w`, and (1)."""
    turns, size = chunks(w, u.shape[0], settings.chunk)

    def body(sums: Any, turn: Any) -> tuple[Any, None]:
        return with_chunk(settings, sums, u, chunk_at(w, table.ids, label, turn, size), bias), None

    zeros = jnp.zeros(u.shape[0], u.dtype)
    (max_logit, total, logit_sum), _ = jax.lax.scan(body, (zeros + LOWEST, zeros, zeros), jnp.arange(turns))
    here = (table.place < w.shape[0]).reshape(-1, *[1] * (w.ndim - 1))
    rows = jnp.where(here, jnp.take(w, table.place, axis=0, mode="clip"), 0.0).astype(u.dtype)
    mine = jnp.take(table.ids, table.place, mode="fill", fill_value=NO_CLASS) != NO_CLASS
    count = (jnp.sum(table.ids != NO_CLASS) - mine).astype(u.dtype)
    overflow = table.overflow
    if settings.axis:
        top = jax.lax.pmax(max_logit, settings.axis)
        total = total if settings.binary else total * jnp.exp(max_logit - top)
        total, logit_sum, rows, count, overflow = jax.lax.psum((total, logit_sum, rows, count, overflow), settings.axis)
        max_logit = top
    if not settings.binary:
        some = total > 0.0
        total = jnp.where(some, max_logit + jnp.log(jnp.where(some, total, 1.0)), LOWEST)
    return ClassSums(total, logit_sum, max_logit, rows, count, overflow)


def of_all(settings: Settings, *arrays: Array) -> tuple[Array, ...]:
    """Arrays that have a row an example, each with the rows of the whole batch."""
    return tuple(
        jax.lax.all_gather(array, settings.batch_axes, tiled=True) if settings.batch_axes else array for array in arrays
    )


def _local(settings: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any) -> ClassSums:
    table, label = in_shard(settings, w, label, key)
    return forward(settings, u, taken(w, table), bias, table, label)


def _local_gradient(
    settings: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any, total: Any, slope: ClassSums
) -> tuple[Array, Array, Array]:
    table, label = in_shard(settings, w, label, key)
    rows = taken(w, table)
    turns, size = chunks(rows, u.shape[0], settings.chunk)

    def body(carry: Any, turn: Any) -> tuple[Any, None]:
        du, drows, dbias = carry
        chunk = chunk_at(rows, table.ids, label, turn, size)
        du_, some, dbias_ = gradient_of_chunk(settings, u, chunk, bias, total, slope)
        some = some + jax.lax.dynamic_slice_in_dim(drows, chunk.start, size)
        return (du + du_, jax.lax.dynamic_update_slice_in_dim(drows, some, chunk.start, 0), dbias + dbias_), None

    (du, drows, dbias), _ = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, (u, rows, bias)), jnp.arange(turns))
    # Into the same array: a second one of W's size is what the gradient of a gather would take.
    place, slopes = of_all(settings, table.place, slope.rows.astype(w.dtype))
    dw = drows = drows.at[place].add(slopes, mode="drop")
    if table.rows is not None:
        dw = jnp.zeros_like(w).at[table.rows].add(drows, mode="drop")
    if settings.axis:
        du, dbias = jax.lax.psum((du, dbias), settings.axis)
    return du, dw, dbias


def on_shards(settings: Settings, function: Callable[..., Any], given: Any, found: Any) -> Callable[..., Any]:
    """`function(settings, …)` on each device's rows of W and its part of the examples; losses/class_mesh.py."""
    if not settings.axis:
        return partial(function, settings)
    return over_mesh(settings.axis, lambda axes: partial(function, replace(settings, batch_axes=axes)), given, found)


def class_sums(
    settings: Settings,
    u: Float[Array, "b d"],
    w: Head,
    bias: PerExample,
    label: Int[Array, " b"],
    key: Key[Array, ""] | None,
) -> ClassSums:
    """What the other classes come to; differentiable once, in u, w and bias."""
    found: Any = _class_sums(settings, u, w, bias, label, key)
    return found


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _class_sums(settings: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any) -> ClassSums:
    return on_shards(settings, _local, SPLIT_OF_INPUTS, SPLIT_OF_SUMS)(u, w, bias, label, key)


def _forward(settings: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any) -> tuple[ClassSums, Any]:
    found = class_sums(settings, u, w, bias, label, key)
    return found, (u, w, bias, label, key, found.total)


def _backward(settings: Settings, kept: Any, slope: ClassSums) -> tuple[Any, ...]:
    gradient = on_shards(
        settings, _local_gradient, (*SPLIT_OF_INPUTS, Split.EXAMPLES, SPLIT_OF_SUMS), SPLIT_OF_INPUTS[:3]
    )
    return *gradient(*kept, slope), None, None


_class_sums.defvjp(_forward, _backward)
