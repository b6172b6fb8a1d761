"""The head's own step, taken chunk by chunk in the backward pass: W's gradient is never held either.

    (1)  V ← μV + (∂L/∂W + wd·W),  W ← W − η·V,  L the mean over the batch          momentum, as PyTorch writes it

W and V are updated in place where they are donated. Of a step that looks at a part of the classes, that part alone is
updated, and the momentum of the others stays as it is (Partial FC's code, too). What flows back into x is exact for any
weight an example has; W's own step assumes the mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from losses.class_chunks import ClassSums, Head, PerExample, Settings, chunk_at, chunk_of, chunks, gradient_of_chunk
from losses.class_mesh import Split
from losses.class_sums import SPLIT_OF_SUMS, class_sums, in_shard, of_all, on_shards
from losses.class_table import taken
from losses.linear_cross_entropy import scaled, value_of
from losses.margin_softmax import Step


@dataclass(frozen=True, kw_only=True)
class HeadSGD:
    """(1), with a linear warm-up, and a cosine that is counted from the first step and 0 at `decay_steps`."""

    learning_rate: float = 0.1  # at its peak
    momentum: float = 0.9  # μ
    weight_decay: float = 0.0  # wd
    warmup: int = 0  # steps
    decay_steps: int = 0  # the step at which the cosine is 0; 0: no decay

    def __post_init__(self) -> None:
        if self.learning_rate <= 0.0 or not 0.0 <= self.momentum < 1.0 or self.weight_decay < 0.0:
            raise ValueError(f"{self}: learning_rate must be above 0, momentum in [0, 1), weight_decay at least 0")
        if min(self.warmup, self.decay_steps) < 0:
            raise ValueError(f"{self}: warmup and decay_steps must be at least 0")

    def rate(self, step: Step) -> Float[Array, ""]:
        """η of a step."""
        at = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (at + 1.0) / self.warmup) if self.warmup else 1.0
        left = jnp.clip(at / self.decay_steps, 0.0, 1.0) if self.decay_steps else 0.0
        return jnp.asarray(self.learning_rate * rise * 0.5 * (1.0 + jnp.cos(np.pi * left)), jnp.float32)


class Fused(NamedTuple):
    """What `fused_step` returns."""

    value: PerExample
    correct: PerExample
    overflow: Int[Array, ""]
    slope_x: Float[Array, "b d"]  # of each example's own value, in x
    slope_bias: PerExample
    w: Array  # W and V after the step
    momentum: Array


def _local(
    update: HeadSGD, settings: Settings, u: Any, w: Any, momentum: Any, bias: Any, label: Any, *rest: Any
) -> Any:
    key, rate, total, slope = rest
    table, label = in_shard(settings, w, label, key)
    rows, moving = taken(w, table), taken(momentum, table)
    place, slopes = of_all(settings, table.place, slope.rows)
    turns, size = chunks(rows, u.shape[0], settings.chunk)

    def body(carry: Any, turn: Any) -> tuple[Any, None]:
        du, dbias, rows, moving = carry
        chunk, (before, _) = chunk_at(rows, table.ids, label, turn, size), chunk_of(moving, turn, size)
        some, start = chunk.rows, chunk.start
        du_, dw, dbias_ = gradient_of_chunk(settings, u, chunk, bias, total, slope)
        here = (place >= turn * size) & (place < start + size)
        at = jnp.where(here, place - start, size)
        after = update.momentum * before + dw + update.weight_decay * some
        # The scatter last, and each array's new rows from it and the array itself: what the compiler fuses with a write
        # may then read nothing of the other array, which it would have to copy first, whole, in every turn.
        after = after.at[at].add(slopes.astype(dw.dtype), mode="drop")
        # Rows that the last chunk has in common with the one before have had their step.
        fresh = chunk.fresh.reshape(-1, *[1] * (some.ndim - 1))
        put = lambda array, part: jax.lax.dynamic_update_slice_in_dim(array, part, start, 0)  # noqa: E731
        rows = put(rows, jnp.where(fresh, some - rate * after, some))
        return (du + du_, dbias + dbias_, rows, put(moving, jnp.where(fresh, after, before))), None

    first = (jnp.zeros_like(u), jnp.zeros_like(bias), rows, moving)
    (du, dbias, rows, moving), _ = jax.lax.scan(body, first, jnp.arange(turns))
    if table.rows is not None:
        rows = w.at[table.rows].set(rows, mode="drop")
        moving = momentum.at[table.rows].set(moving, mode="drop")
    if settings.axis:
        du, dbias = jax.lax.psum((du, dbias), settings.axis)
    return du, dbias, rows, moving


def fused_step(
    settings: Settings,
    update: HeadSGD,
    x: Float[Array, "b d"],
    w: Head,
    momentum: Head,
    bias: PerExample,
    label: Int[Array, " b"],
    key: Key[Array, ""] | None,
    step: Step,
) -> Fused:
    """Forward, backward and (1) of the head. Nothing of it is to be differentiated through."""
    u, back_to_x = jax.vjp(partial(scaled, settings.margin), x)
    found = class_sums(settings, u, w, bias, label, key)

    def tail(x: Any, bias: Any, total: Any, logit_sum: Any, rows: Any) -> Any:
        return value_of(settings, x, found._replace(total=total, logit_sum=logit_sum, rows=rows), bias, label, step)

    value, back, correct = jax.vjp(tail, x, bias, found.total, found.logit_sum, found.rows, has_aux=True)
    share = 1.0 / x.shape[0]
    dx, dbias, dtotal, dlogit_sum, drows = back(jnp.full_like(value, share))
    slope = ClassSums(dtotal, dlogit_sum, found.max_logit, drows, found.negatives, found.overflow)
    each, split, whole = Split.EXAMPLES, Split.ROWS, Split.NOT
    given = (each, split, split, each, each, whole, whole, each, SPLIT_OF_SUMS)
    run: Callable[..., Any] = on_shards(settings, partial(_local, update), given, (each, each, split, split))
    du, more, w, momentum = run(u, w, momentum, bias, label, key, update.rate(step), found.total, slope)
    dx, dbias = (dx + back_to_x(du)[0]) / share, (dbias + more) / share
    return Fused(value, correct, found.overflow, dx, dbias, w, momentum)


def carried(found: Fused, x: Float[Array, "b d"], bias: PerExample) -> PerExample:
    """The values, whose derivatives in each example's x and bias are the slopes found."""
    fixed = jax.lax.stop_gradient(found)
    inner = jnp.sum(x * fixed.slope_x, axis=1) + bias * fixed.slope_bias
    return fixed.value + (inner - jax.lax.stop_gradient(inner))
