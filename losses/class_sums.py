"""The sum over all other classes of a softmax, in chunks of W's rows, over devices and over a part of the classes.

    (1)  over chunks: m ← max(m, z), l ← l·e^{m_old − m} + Σ e^{z − m};  log Σ e^z = m + log l              1805.02867
    (2)  over devices: M = max_d m_d, log Σ e^z = M + log Σ_d l_d·e^{m_d − M}
    (3)  d log Σ e^z/dz_j = e^{z_j − log Σ e^z}: each chunk's logits once more, with the sum that is known by then

Logits are z_ij = f(u_i·ŵ_j), counted where class j is not example i's own. What is held is one chunk of them. The rows
are W's, what a step has drawn of them (losses/class_table.py), or a device's part of either (losses/class_mesh.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.class_mesh import Split, over_mesh, own
from losses.class_table import NO_CLASS, Table, sampled, taken
from losses.margin_softmax import BinaryMargin, Margin
from models.embedder import unit

HELD = 2**21  # logits that are held at once, unless it is said: 8 MiB
LOWEST = -1e30  # in place of −∞, with which differences would be no numbers
# A cosine just below 1, rounded to bfloat16, is off by 5 degrees.
product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

Head = Float[Array, "c d"] | Float[Array, "c k d"]
PerExample = Float[Array, " b"]


class ClassSums(NamedTuple):
    """What the other classes come to."""

    total: PerExample  # log Σ e^z, or of a binary margin Σ log(1 + e^z)
    logit_sum: PerExample  # Σ z; 0 where it is not asked for
    max_logit: PerExample  # max z, of no gradient
    rows: Array  # [B, D] or [B, K, D]: W's of each example's class, 0 where it is another shard's
    negatives: PerExample  # how many of them there were
    overflow: Int[Array, ""]


# How they are split; and u, w, bias, label and key.
SPLIT_OF_SUMS = ClassSums._make([Split.EXAMPLES] * 5 + [Split.NOT])
SPLIT_OF_INPUTS = (Split.EXAMPLES, Split.ROWS, Split.EXAMPLES, Split.EXAMPLES, Split.NOT)


@dataclass(frozen=True)
class Settings:
    """What is fixed when the step is traced."""

    margin: Margin
    classes: int  # rows of W behind so many are none
    chunk: int = 0  # rows at once; 0: as many as make 2²¹ logits
    sample: float = 1.0  # part of each shard's classes that is looked at
    smoothing: float = 0.0
    axis: str | None = None  # of the mesh, that W's rows are split over
    batch_axes: tuple[str, ...] = ()  # its other axes, that the examples are split over: set by `on_shards`

    @property
    def binary(self) -> bool:
        return isinstance(self.margin, BinaryMargin)

    def __post_init__(self) -> None:
        if self.chunk < 0 or not 0.0 < self.sample <= 1.0:
            raise ValueError(f"chunk={self.chunk} must be at least 0, sample={self.sample} in (0, 1]")
        if not 0.0 <= self.smoothing < 1.0 or (self.smoothing and self.binary):
            raise ValueError(
                f"label_smoothing={self.smoothing} must be in [0, 1), and 0 where each class is told by itself"
            )


def logits_of(margin: Margin, u: Float[Array, "b d"], w: Head, bias: PerExample) -> Float[Array, "b c"]:
    """Others' logits: u is r·x̂, W's rows are taken at unit length where the margin does; the best of K sub-centres."""
    w = unit(w) if margin.UNIT_WEIGHTS else w.astype(u.dtype)
    z = product("bd,cd->bc", u, w) if w.ndim == 2 else jnp.max(product("bd,ckd->bck", u, w), axis=-1)
    return margin.other(z) + bias[:, None] if isinstance(margin, BinaryMargin) else margin.other(z)


def chunks(w: Head, examples: int, chunk: int) -> tuple[int, int]:
    """How many chunks of W, and rows of each: `chunk` rows or a little less, all alike."""
    rows, centres = w.shape[0], w.shape[1] if w.ndim == 3 else 1
    chunk = min(chunk or max(1, HELD // (examples * centres)), rows)
    turns = -(-rows // chunk)
    return turns, -(-rows // turns)


def chunk_of(array: Array, turn: Any, size: int) -> tuple[Array, Any]:
    """A chunk's rows, and where they begin: the last chunk is moved back to be whole."""
    start = jnp.minimum(turn * size, array.shape[0] - size)
    return jax.lax.dynamic_slice_in_dim(array, start, size), start


def negative_mask(ids: Int[Array, " r"], label: Int[Array, " b"], turn: Any, size: int) -> Float[Array, "b c"]:
    """1 where a chunk's row is of another class than the example's and in no chunk before, else 0."""
    some, start = chunk_of(ids, turn, size)
    fresh = (start + jnp.arange(size) >= turn * size) & (some != NO_CLASS)
    return (fresh[None, :] & (some[None, :] != label[:, None])).astype(jnp.float32)


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
    """(1) over a table's rows `w`, and (2)."""
    turns, size = chunks(w, u.shape[0], settings.chunk)

    def body(sums: Any, turn: Any) -> tuple[Any, None]:
        max_logit, total, logit_sum = sums
        z = logits_of(settings.margin, u, chunk_of(w, turn, size)[0], bias)
        counts = negative_mask(table.ids, label, turn, size)
        shown = jnp.where(counts > 0.0, z, LOWEST)
        above = jnp.maximum(max_logit, jnp.max(shown, axis=1))
        if settings.binary:
            total = total + jnp.sum(jax.nn.softplus(shown), axis=1)
        else:
            # `counts` once more: where there has been no rival at all, m is LOWEST and e^0 everywhere.
            total = total * jnp.exp(max_logit - above) + jnp.sum(counts * jnp.exp(shown - above[:, None]), axis=1)
        logit_sum = logit_sum + jnp.sum(counts * z, axis=1) if settings.smoothing else logit_sum
        return (above, total, logit_sum), None

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


def gradient_of_chunk(
    settings: Settings, u: Any, w: Any, bias: Any, counts: Any, total: Any, slope: ClassSums
) -> tuple[Array, Array, Array]:
    """(du, dw, dbias) of one chunk, of Σ_i slope.total_i·total_i + slope.logit_sum_i·logit_sum_i."""
    z, back = jax.vjp(lambda u, w, bias: logits_of(settings.margin, u, w, bias), u, w, bias)
    part = jax.nn.sigmoid(z) if settings.binary else jnp.exp(jnp.where(counts > 0.0, z - total[:, None], LOWEST))
    du, dw, dbias = back(
        counts * (slope.total[:, None] * part + (slope.logit_sum[:, None] if settings.smoothing else 0.0))
    )
    # Chunk by chunk: the sum of all of W's gradient would be a second array of its size.
    return du, jax.lax.psum(dw, settings.batch_axes) if settings.batch_axes else dw, dbias


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
        some, start = chunk_of(rows, turn, size)
        counts = negative_mask(table.ids, label, turn, size)
        du_, some, dbias_ = gradient_of_chunk(settings, u, some, bias, counts, total, slope)
        some = some + jax.lax.dynamic_slice_in_dim(drows, start, size)
        return (du + du_, jax.lax.dynamic_update_slice_in_dim(drows, some, start, 0), dbias + dbias_), None

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
