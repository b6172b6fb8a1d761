"""A chunk of W's rows: its logits, what it adds to the sums over all other classes, and its part of their gradient.

    (1)  m ← max(m, z), l ← l·e^{m_old − m} + Σ e^{z − m};  log Σ e^z = m + log l after the last            1805.02867
    (2)  d log Σ e^z/dz_j = e^{z_j − log Σ e^z}: the logits once more, with the sum that is known by then

Logits are z_ij = f(u_i·ŵ_j), counted where class j is not example i's own. What is held is one chunk of them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from losses.class_table import NO_CLASS
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


class Chunk(NamedTuple):
    """Some of W's rows."""

    rows: Array
    start: Any  # where they begin
    fresh: Bool[Array, " c"]  # in no chunk before
    counts: Float[Array, "b c"]  # 1 for a fresh row of another class than the example's, else 0


def chunk_at(w: Head, ids: Int[Array, " r"], label: Int[Array, " b"], turn: Any, size: int) -> Chunk:
    """A chunk of rows whose classes are `ids`."""
    (rows, start), (some, _) = chunk_of(w, turn, size), chunk_of(ids, turn, size)
    fresh = start + jnp.arange(size) >= turn * size
    counts = (fresh & (some != NO_CLASS))[None, :] & (some[None, :] != label[:, None])
    return Chunk(rows, start, fresh, counts.astype(jnp.float32))


def with_chunk(
    settings: Settings, sums: tuple[PerExample, PerExample, PerExample], u: Any, chunk: Chunk, bias: Any
) -> tuple[PerExample, PerExample, PerExample]:
    """(1): (max z, l, Σ z) of the chunks so far and of this one; of a binary margin l is Σ log(1 + e^z)."""
    (max_logit, total, logit_sum), counts = sums, chunk.counts
    z = logits_of(settings.margin, u, chunk.rows, bias)
    shown = jnp.where(counts > 0.0, z, LOWEST)
    above = jnp.maximum(max_logit, jnp.max(shown, axis=1))
    if settings.binary:
        total = total + jnp.sum(jax.nn.softplus(shown), axis=1)
    else:
        # `counts` once more: where there has been no rival at all, m is LOWEST and e^0 everywhere.
        total = total * jnp.exp(max_logit - above) + jnp.sum(counts * jnp.exp(shown - above[:, None]), axis=1)
    return above, total, logit_sum + jnp.sum(counts * z, axis=1) if settings.smoothing else logit_sum


def gradient_of_chunk(
    settings: Settings, u: Any, chunk: Chunk, bias: Any, total: Any, slope: ClassSums
) -> tuple[Array, Array, Array]:
    """(2): (du, dw, dbias) of one chunk, of Σ_i slope.total_i·total_i + slope.logit_sum_i·logit_sum_i."""
    counts = chunk.counts
    z, back = jax.vjp(lambda u, w, bias: logits_of(settings.margin, u, w, bias), u, chunk.rows, bias)
    part = jax.nn.sigmoid(z) if settings.binary else jnp.exp(jnp.where(counts > 0.0, z - total[:, None], LOWEST))
    du, dw, dbias = back(
        counts * (slope.total[:, None] * part + (slope.logit_sum[:, None] if settings.smoothing else 0.0))
    )
    # Chunk by chunk: the sum of all of W's gradient would be a second array of its size.
    return du, jax.lax.psum(dw, settings.batch_axes) if settings.batch_axes else dw, dbias
