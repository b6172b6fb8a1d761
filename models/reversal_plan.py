"""Plans by which a chain is gone through backwards from few kept states (models/revolve.py): binomial and recursive.

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
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


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
