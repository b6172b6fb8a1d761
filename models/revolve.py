"""Chains gone through backwards from few kept states, by a plan that is made beforehand.

A chain h_{i+1} = f(h_i, x_i) of n steps is reversed step by step, i = n−1 … 0: the derivative of step i needs h_i,
which is computed anew from the nearest state before it that is kept. Of all plans with s states kept at a time, h_0
included, the least number of steps taken is

    (1)  P(n, s) = min_{0<m<n} m + P(n − m, s − 1) + P(m, s),  P(1, s) = 0,  P(n, 1) = n·(n − 1)/2
    (2)  P(n, s) = r·n − C(s + r, s + 1),  r the least with C(s + r, s) ≥ n          Griewank & Walther 2000, alg. 799

(the binomial schedule, `revolve`). Recursive plans cut a chain into b parts, keep the state at each part's beginning,
and go through the parts from the last to the first in the same way; m levels of it keep m·(b − 1) + 1 states:

    (3)  N(n, m) = (b − 1)·n/b + b·N(n/b, m − 1) = m·(n − n/b) where n = bᵐ              Chen et al. 1604.06174 §4.3

The forward pass takes n steps in any case, and so does the derivative of each step. P and N count all others but one:
of the first sweep's n − 1 the forward pass takes every one, so that beside its own n there are P − (n − 1) more.

A plan is a table, and the whole backward pass one `lax.scan` over its rows: nothing is unrolled, at any n. Gradients of
x_i are written where they belong, and no x is copied.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

TURNS = "turns="


@dataclass(frozen=True, kw_only=True, eq=False)
class Reversal:
    """A reversal of n steps as a table."""

    slots: int  # states kept at a time; row `slots` of their store is the state that is being worked on
    first: np.ndarray  # [n] the row into which the forward pass puts h_i
    start: np.ndarray  # [n] the row from which the work on step i sets out
    at: np.ndarray  # [n] which step's state that is
    begin: np.ndarray  # [n] of what is stored on the way to step i, the first in `target`; its end is the next one's
    end: np.ndarray
    target: np.ndarray  # [stored] steps whose states are kept on the way
    row: np.ndarray  # [stored] where
    steps: int  # taken in all: P or N


def _planned(n: int, slots: int, events: Iterator[tuple[str, int]]) -> Reversal:
    """From the order in which states are kept (`store`), let go (`free`) and used (`back`)."""
    rows, free = {0: 0}, list(range(slots - 1, 0, -1))
    first = np.full(n, slots)
    table: dict[str, list[int]] = {name: [0] * n for name in ("start", "at", "begin", "end")}
    target: list[int] = []
    row: list[int] = []
    first[0], steps, sweeping, waiting = 0, n - 1, True, 0
    for kind, i in events:
        if kind == "store":
            rows[i] = free.pop()
            if sweeping:
                first[i] = rows[i]
            else:
                target.append(i)
                row.append(rows[i])
        elif kind == "free":
            free.append(rows.pop(i))
        else:
            stored = target[waiting:]
            nearest = max(j for j in rows if j <= i and j not in stored)
            table["start"][i], table["at"][i] = rows[nearest], nearest
            if sweeping:  # the forward pass ended here: its last state is still in the working row, or is kept
                table["start"][i], table["at"][i] = first[n - 1], n - 1
            else:
                steps += i - nearest
            table["begin"][i], table["end"][i] = waiting, len(target)
            waiting, sweeping = len(target), False
    arrays = {name: np.asarray(values, np.int32) for name, values in table.items()}
    kept = {"target": np.asarray(target or [0], np.int32), "row": np.asarray(row or [0], np.int32)}
    return Reversal(slots=slots, first=first.astype(np.int32), steps=steps, **arrays, **kept)


@functools.cache
def binomial(n: int, slots: int) -> Reversal:
    """Eq. (1)."""

    def reverse(low: int, high: int, spare: int) -> Iterator[tuple[str, int]]:
        if spare == 0 or high - low == 1:
            yield from (("back", i) for i in range(high - 1, low - 1, -1))
            return
        m = low + _cut(high - low, spare + 1)
        yield "store", m
        yield from reverse(m, high, spare - 1)
        yield "free", m
        yield from reverse(low, m, spare)

    return _planned(n, slots, reverse(0, n, slots - 1))


@functools.cache
def nested(n: int, levels: int) -> Reversal:
    """Eq. (3): `levels` levels of parts, as few parts each as will do; no more levels than halving takes."""
    levels = min(levels, max(1, (n - 1).bit_length()))
    parts = next(b for b in range(1, n + 1) if b**levels >= n)

    def reverse(low: int, high: int, level: int) -> Iterator[tuple[str, int]]:
        if high - low == 1:
            yield "back", low
            return
        begins = range(low, high, parts ** (level - 1))
        yield from (("store", i) for i in begins[1:])
        for i in reversed(begins):
            yield from reverse(i, min(i + parts ** (level - 1), high), level - 1)
            if i != low:
                yield "free", i

    return _planned(n, levels * (parts - 1) + 1, reverse(0, n, levels))


def least_steps(n: int, slots: int) -> int:
    """Eq. (2)."""
    r = next(r for r in range(n + 1) if math.comb(slots + r, slots) >= n)
    return r * n - math.comb(slots + r, slots + 1)


@functools.cache
def _cut(n: int, slots: int) -> int:
    """A minimiser m of eq. (1), slots ≥ 2."""
    return min(range(1, n), key=lambda m: m + least_steps(n - m, slots - 1) + least_steps(m, slots))


def revolved(body: Any, carry: Any, xs: Any, plan: Reversal) -> tuple[Any, Any]:
    """`lax.scan(body, carry, xs)`, its gradient by the plan. Reverse mode, once.

    Raises:
      TypeError: the carry is not floating-point, or the body changes its type.
    """
    n = len(plan.first)
    if not all(_floating(leaf) for leaf in jax.tree.leaves(carry)):
        raise TypeError("only a chain whose carry is floating-point can be gone through backwards by a plan")
    # Whatever the body closes over becomes an argument: a rule for gradients must not hold values being traced.
    traced, shapes = jax.make_jaxpr(body, return_shape=True)(carry, _take(xs, 0))
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (carry, shapes[0])]
    if kinds[0] != kinds[1]:
        raise TypeError(f"a chain's carry must stay as it is: {kinds[0]} became {kinds[1]}")
    leaves, tree = jax.tree.flatten(xs)
    of_body, of_xs = [_floating(leaf) for leaf in traced.consts], [_floating(leaf) for leaf in leaves]

    def step(consts: list[Any], h: Any, x: list[Any]) -> Any:
        flat = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, consts))(*jax.tree.leaves((h, tree.unflatten(x))))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    @jax.custom_vjp
    def run(trained: Any, h: Any, given: Any) -> Any:
        consts, xs = _joined(of_body, trained[0], given[0]), _joined(of_xs, trained[1], given[1])
        return jax.lax.scan(lambda h, x: step(consts, h, x), h, xs)

    def ahead(trained: Any, h: Any, given: Any) -> Any:
        consts, xs = _joined(of_body, trained[0], given[0]), _joined(of_xs, trained[1], given[1])
        store = jax.tree.map(lambda leaf: jnp.zeros((plan.slots + 1, *leaf.shape), leaf.dtype), h)

        def turn(now: Any, row: Any) -> Any:
            (h, store), (x, place) = now, row
            store = _put(store, place, h)
            h, y = step(consts, h, x)
            return (h, store), y

        (h, store), ys = jax.lax.scan(turn, (h, store), (xs, jnp.asarray(plan.first)))
        return (h, ys), (trained, store, given)

    def back(kept: Any, bars: Any) -> Any:
        trained, store, given = kept
        consts, xs = _joined(of_body, trained[0], given[0]), _joined(of_xs, trained[1], given[1])
        target, row_of = jnp.asarray(plan.target), jnp.asarray(plan.row)

        # Steps that are taken again, by stretches: one to each state that is kept on the way, one to each step.
        kept_states = int(np.sum(plan.end - plan.begin))
        mean = (plan.steps - (n - 1)) / (n + kept_states)

        def go(h: Any, low: Any, high: Any) -> Any:
            return jax.lax.fori_loop(low, high, lambda i, h: step(consts, turning(h, mean), _take(xs, i))[0], h)

        def keep(e: Any, now: Any) -> Any:
            h, store, at = now
            h = turning(h, kept_states / n)
            h = go(h, at, target[e])
            return h, _put(store, row_of[e], h), target[e]

        def turn(now: Any, row: Any) -> Any:
            (store, h_bar, consts_bar), (place, y_bar) = now, row
            begun = (_take(store, place["start"]), store, place["at"])
            h, store, at = jax.lax.fori_loop(place["begin"], place["end"], keep, begun)
            h, x, fixed = go(h, at, place["i"]), _take(trained[1], place["i"]), _take(given[1], place["i"])

            def here(consts: list[Any], h: Any, x: list[Any]) -> Any:
                return step(_joined(of_body, consts, given[0]), h, _joined(of_xs, x, fixed))

            change, h_bar, x_bar = jax.vjp(here, trained[0], h, x)[1]((h_bar, y_bar))
            return (store, h_bar, jax.tree.map(jnp.add, consts_bar, change)), x_bar

        places = {name: jnp.asarray(getattr(plan, name)) for name in ("start", "at", "begin", "end")}
        rows = (places | {"i": jnp.arange(n, dtype=jnp.int32)}, bars[1])
        zeros = jax.tree.map(jnp.zeros_like, trained[0])
        (_, h_bar, consts_bar), xs_bar = jax.lax.scan(turn, (store, bars[0], zeros), rows, reverse=True)
        return (consts_bar, xs_bar), h_bar, None

    run.defvjp(ahead, back)
    parts = [_parted(of_body, traced.consts), _parted(of_xs, leaves)]
    (carry, ys) = run(tuple(part[0] for part in parts), carry, tuple(part[1] for part in parts))
    return carry, ys


def turning(h: Any, turns: float) -> Any:
    """Has the body of a loop say how often it turns on average, where its trip count is data; training/flops.py."""
    leaves, tree = jax.tree.flatten(h)
    return tree.unflatten([checkpoint_name(leaves[0], f"{TURNS}{turns}"), *leaves[1:]])


def _floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _parted(floating: list[bool], leaves: list[Any]) -> tuple[list[Any], list[Any]]:
    """What has a gradient, and the rest."""
    both = list(zip(floating, leaves, strict=True))
    return [leaf for yes, leaf in both if yes], [leaf for yes, leaf in both if not yes]


def _joined(floating: list[bool], trained: list[Any], given: list[Any]) -> list[Any]:
    """The inverse of `_parted`."""
    sides = iter(trained), iter(given)
    return [next(sides[0] if yes else sides[1]) for yes in floating]


def _take(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


def _put(store: Any, place: Any, h: Any) -> Any:
    update = jax.lax.dynamic_update_index_in_dim
    return jax.tree.map(lambda rows, leaf: update(rows, leaf, place, 0), store, h)
