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
from losses.class_table import NOBODY, Table, sampled, taken
from losses.margin_softmax import BinaryMargin, Margin
from models.embedder import unit

HELD = 2**21  # logits that are held at once, unless it is said: 8 MiB
LOWEST = -1e30  # in place of −∞, with which differences would be no numbers
# A cosine just below 1, rounded to bfloat16, is off by 5 degrees.
product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

Head = Float[Array, "c d"] | Float[Array, "c k d"]
Maybe = Key[Array, ""] | None
PerExample = Float[Array, " b"]


class Others(NamedTuple):
    """What the other classes come to."""

    total: PerExample  # log Σ e^z, or of a binary margin Σ log(1 + e^z)
    summed: PerExample  # Σ z; 0 where it is not asked for
    highest: PerExample  # max z, of no gradient
    rows: Array  # [B, D] or [B, K, D]: W's of each example's class, 0 where it is another shard's
    rivals: PerExample  # how many there were
    overflow: Int[Array, ""]


# How they are split; and u, w, bias, label and key.
OF_OTHERS = Others._make([Split.EXAMPLES] * 5 + [Split.NOT])
OF_LOSS = (Split.EXAMPLES, Split.ROWS, Split.EXAMPLES, Split.EXAMPLES, Split.NOT)


@dataclass(frozen=True)
class Settings:
    """What is fixed when the step is traced."""

    margin: Margin
    classes: int  # rows of W behind so many are none
    chunk: int = 0  # rows at once; 0: as many as make 2²¹ logits
    sample: float = 1.0  # part of each shard's classes that is looked at
    smoothing: float = 0.0
    axis: str | None = None  # of the mesh, that W's rows are split over
    apart: tuple[str, ...] = ()  # its other axes, that the examples are split over: set by `on_shards`

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


def rivals(ids: Int[Array, " r"], label: Int[Array, " b"], turn: Any, size: int) -> Float[Array, "b c"]:
    """1 where a chunk's row is of another class than the example's and in no chunk before, else 0."""
    some, start = chunk_of(ids, turn, size)
    fresh = (start + jnp.arange(size) >= turn * size) & (some != NOBODY)
    return (fresh[None, :] & (some[None, :] != label[:, None])).astype(jnp.float32)


def in_shard(how: Settings, w: Head, label: Int[Array, " b"], key: Maybe) -> tuple[Table, Any]:
    """This device's table and its examples' classes as it numbers them."""
    size, classes = w.shape[0], how.classes
    if how.axis:
        index = jax.lax.axis_index(how.axis)
        label, classes = label - index * size, classes - index * size
        key = None if key is None else jax.random.fold_in(key, index)
    # Devices that have the same rows have to draw the same ones, whichever examples they have of the batch.
    table = sampled(of_all(how, label)[0], size, classes, how.sample, key)
    if how.apart:
        table = table._replace(place=own(table.place, how.apart, label.shape[0]))
    return table, label


def forward(how: Settings, u: Any, w: Any, bias: Any, table: Table, label: Any) -> Others:
    """(1) over a table's rows `w`, and (2)."""
    turns, size = chunks(w, u.shape[0], how.chunk)

    def body(sums: Any, turn: Any) -> tuple[Any, None]:
        highest, total, summed = sums
        z = logits_of(how.margin, u, chunk_of(w, turn, size)[0], bias)
        counts = rivals(table.ids, label, turn, size)
        shown = jnp.where(counts > 0.0, z, LOWEST)
        above = jnp.maximum(highest, jnp.max(shown, axis=1))
        if how.binary:
            total = total + jnp.sum(jax.nn.softplus(shown), axis=1)
        else:
            # `counts` once more: where there has been no rival at all, m is LOWEST and e^0 everywhere.
            total = total * jnp.exp(highest - above) + jnp.sum(counts * jnp.exp(shown - above[:, None]), axis=1)
        summed = summed + jnp.sum(counts * z, axis=1) if how.smoothing else summed
        return (above, total, summed), None

    zeros = jnp.zeros(u.shape[0], u.dtype)
    (highest, total, summed), _ = jax.lax.scan(body, (zeros + LOWEST, zeros, zeros), jnp.arange(turns))
    here = (table.place < w.shape[0]).reshape(-1, *[1] * (w.ndim - 1))
    rows = jnp.where(here, jnp.take(w, table.place, axis=0, mode="clip"), 0.0).astype(u.dtype)
    mine = jnp.take(table.ids, table.place, mode="fill", fill_value=NOBODY) != NOBODY
    count = (jnp.sum(table.ids != NOBODY) - mine).astype(u.dtype)
    overflow = table.overflow
    if how.axis:
        top = jax.lax.pmax(highest, how.axis)
        total = total if how.binary else total * jnp.exp(highest - top)
        total, summed, rows, count, overflow = jax.lax.psum((total, summed, rows, count, overflow), how.axis)
        highest = top
    if not how.binary:
        some = total > 0.0
        total = jnp.where(some, highest + jnp.log(jnp.where(some, total, 1.0)), LOWEST)
    return Others(total, summed, highest, rows, count, overflow)


def chunk_gradient(
    how: Settings, u: Any, w: Any, bias: Any, counts: Any, total: Any, slope: Others
) -> tuple[Array, Array, Array]:
    """(du, dw, dbias) of one chunk, of Σ_i slope.total_i·total_i + slope.summed_i·summed_i."""
    z, back = jax.vjp(lambda u, w, bias: logits_of(how.margin, u, w, bias), u, w, bias)
    part = jax.nn.sigmoid(z) if how.binary else jnp.exp(jnp.where(counts > 0.0, z - total[:, None], LOWEST))
    du, dw, dbias = back(counts * (slope.total[:, None] * part + (slope.summed[:, None] if how.smoothing else 0.0)))
    # Chunk by chunk: the sum of all of W's gradient would be a second array of its size.
    return du, jax.lax.psum(dw, how.apart) if how.apart else dw, dbias


def of_all(how: Settings, *arrays: Array) -> tuple[Array, ...]:
    """Arrays that have a row an example, each with the rows of the whole batch."""
    return tuple(jax.lax.all_gather(array, how.apart, tiled=True) if how.apart else array for array in arrays)


def _local(how: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any) -> Others:
    table, label = in_shard(how, w, label, key)
    return forward(how, u, taken(w, table), bias, table, label)


def _local_gradient(
    how: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any, total: Any, slope: Others
) -> tuple[Array, Array, Array]:
    table, label = in_shard(how, w, label, key)
    rows = taken(w, table)
    turns, size = chunks(rows, u.shape[0], how.chunk)

    def body(carry: Any, turn: Any) -> tuple[Any, None]:
        du, drows, dbias = carry
        some, start = chunk_of(rows, turn, size)
        counts = rivals(table.ids, label, turn, size)
        du_, some, dbias_ = chunk_gradient(how, u, some, bias, counts, total, slope)
        some = some + jax.lax.dynamic_slice_in_dim(drows, start, size)
        return (du + du_, jax.lax.dynamic_update_slice_in_dim(drows, some, start, 0), dbias + dbias_), None

    (du, drows, dbias), _ = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, (u, rows, bias)), jnp.arange(turns))
    # Into the same array: a second one of W's size is what the gradient of a gather would take.
    place, slopes = of_all(how, table.place, slope.rows.astype(w.dtype))
    dw = drows = drows.at[place].add(slopes, mode="drop")
    if table.rows is not None:
        dw = jnp.zeros_like(w).at[table.rows].add(drows, mode="drop")
    if how.axis:
        du, dbias = jax.lax.psum((du, dbias), how.axis)
    return du, dw, dbias


def on_shards(how: Settings, function: Callable[..., Any], given: Any, found: Any) -> Callable[..., Any]:
    """`function(how, …)` on each device's rows of W and its part of the examples; losses/class_mesh.py."""
    if not how.axis:
        return partial(function, how)
    return over_mesh(how.axis, lambda apart: partial(function, replace(how, apart=apart)), given, found)


def others(
    how: Settings,
    u: Float[Array, "b d"],
    w: Head,
    bias: PerExample,
    label: Int[Array, " b"],
    key: Key[Array, ""] | None,
) -> Others:
    """What the other classes come to; differentiable once, in u, w and bias."""
    found: Any = _others(how, u, w, bias, label, key)
    return found


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _others(how: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any) -> Others:
    return on_shards(how, _local, OF_LOSS, OF_OTHERS)(u, w, bias, label, key)


def _forward(how: Settings, u: Any, w: Any, bias: Any, label: Any, key: Any) -> tuple[Others, Any]:
    found = others(how, u, w, bias, label, key)
    return found, (u, w, bias, label, key, found.total)


def _backward(how: Settings, kept: Any, slope: Others) -> tuple[Any, ...]:
    gradient = on_shards(how, _local_gradient, (*OF_LOSS, Split.EXAMPLES, OF_OTHERS), OF_LOSS[:3])
    return *gradient(*kept, slope), None, None


_others.defvjp(_forward, _backward)
