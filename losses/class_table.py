"""The rows of W that a step looks at: all of them, or a part drawn for it (Partial FC, 2010.05222 §3).

    (1)  all        row c holds class c
    (2)  a part     S = ⌈rate·C⌉ slots, or a row for each of the batch's classes if those are more. The batch's distinct
                    classes are in the first n of them; each slot behind holds one class at random of its stratum, of S
                    strata of neighbouring classes that begin at a random one. One that is in the batch counts once

So to draw costs as many numbers as there are slots, and no permutation of all classes. Of the batch's classes those
past the slots (n > S) are no class's rivals: they are counted as overflow. Over a mesh all of it holds in each shard,
of its own classes; a class is then named by its number in the shard.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

NO_CLASS = -1


class Table(NamedTuple):
    """R rows and the classes they are of."""

    ids: Int[Array, " r"]  # class of each row; NO_CLASS where it is no class's rival
    rows: Int[Array, " r"] | None  # its row in W, or past the last where it is to be left alone; None: all in order
    place: Int[Array, " b"]  # row of each example's class; R where it is none of this shard's
    overflow: Int[Array, ""]


def whole(label: Int[Array, " b"], size: int, classes: Int[Array, ""] | int) -> Table:
    """(1): `size` rows, the first `classes` of which are classes."""
    ids = jnp.arange(size, dtype=jnp.int32)
    place = jnp.where((label >= 0) & (label < size), label, size)
    return Table(jnp.where(ids < classes, ids, NO_CLASS), None, place, jnp.zeros((), jnp.int32))


def sampled(
    label: Int[Array, " b"], size: int, classes: Int[Array, ""] | int, rate: float, key: Key[Array, ""] | None
) -> Table:
    """(2); where the slots are as many as the rows, (1), which takes no key."""
    slots, examples = math.ceil(rate * size), label.shape[0]
    if slots >= size or key is None:
        return whole(label, size, classes)
    distinct, place, count = _ranked(label, size)
    turn_key, draw_key = jax.random.split(key)
    stratum = jnp.arange(slots, dtype=jnp.int32)
    width, wider = divmod(size, slots)  # the first `wider` strata hold one class more
    widths = width + (stratum < wider).astype(jnp.int32)
    within = (jax.random.uniform(draw_key, (slots,)) * widths).astype(jnp.int32)
    drawn = stratum * width + jnp.minimum(stratum, wider) + jnp.minimum(within, widths - 1)
    # Turned as a whole: it is another class each time that has a narrow stratum, or one whose slot is taken.
    drawn = (drawn + jax.random.randint(turn_key, (), 0, size, jnp.int32)) % size
    near = jnp.minimum(jnp.searchsorted(distinct, drawn), examples - 1)
    drawn = jnp.where(distinct[near] == drawn, size, drawn)  # it has a slot of its own
    length = max(slots, examples)
    own = jnp.pad(distinct, (0, length - examples), constant_values=size)
    filled = jnp.pad(drawn, (0, length - slots), constant_values=size)
    index = jnp.arange(length, dtype=jnp.int32)
    rows = jnp.where(index < count, own, filled)
    rival = (rows < jnp.minimum(classes, size)) & (index < slots)
    place = jnp.where(place < count, place, length)
    return Table(jnp.where(rival, rows, NO_CLASS), rows, place, jnp.maximum(count - slots, 0))


def _ranked(label: Int[Array, " b"], size: int) -> tuple[Int[Array, " b"], Int[Array, " b"], Int[Array, ""]]:
    """The batch's distinct classes of this shard, in order and then `size`; each example's rank; how many there are."""
    here = jnp.where((label >= 0) & (label < size), label, size).astype(jnp.int32)
    ordered = jnp.sort(here)
    first: Bool[Array, " b"] = jnp.concatenate(
        [ordered[:1] < size, (ordered[1:] != ordered[:-1]) & (ordered[1:] < size)]
    )
    rank = jnp.cumsum(first) - 1
    distinct = jnp.full_like(here, size).at[jnp.where(first, rank, here.shape[0])].set(ordered, mode="drop")
    place = jnp.where(here < size, jnp.searchsorted(distinct, here), here.shape[0])
    return distinct, place.astype(jnp.int32), jnp.sum(first).astype(jnp.int32)


def taken(w: Float[Array, "c *d"], table: Table) -> Float[Array, "r *d"]:
    """The table's rows of W; where one is to be left alone, some other."""
    return w if table.rows is None else jnp.take(w, table.rows, axis=0, mode="clip")
