"""Gradient checkpointing: what a chain of equal steps keeps for its gradient, and what it computes once more.

A chain is (h_{i+1}, y_i) = f(h_i, x_i), i = 0 … n−1: blocks over depth, a cell over time, an integrator's steps. Let h
have c bytes, and what f's own derivative needs besides its arguments a bytes. x and y are the chain's arguments and
results: they are there in any case.

    policy              kept for the backward pass              passes of f beside the first n
    (1) none            n·a                                     0
    (2) dots            n·(c + products and convolutions)       0, but for what is no product
    (3) names(…)        n·(c + activations of these names)      what they do not spare
    (4) full            n·c + a                                 n
    (5) group(k)        n/k·c + k·a                             n                                  1604.06174 §4.1
    (6) sqrt            (5) at its least, k = √(n·c/a): 2·√(n·c·a)
    (7) nested(m)       (m·(b − 1) + 2)·c + a,  b = n^(1/m)     m·(n − n/b) + 1                    1604.06174 §4.3
    (8) binomial(s)     (s + 1)·c + a                           P(n, s) + 1, reversal_plan.py    Griewank & Walther
    (9) reversible      c, or c·n/k with reversible(k)          n inverses of bijections, models/flows/stacked.py

In (7) m is ⌈log₄ n⌉ where it is not said: memory as log n, time as n·log n. (1)–(6) can be differentiated in either
mode and again; (7)–(9) once, in reverse mode. In (3), `offload` keeps activations in the host's memory.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from models.reversal_plan import Reversal, binomial, nested
from models.revolve import revolved

Body = Callable[[Any, Any], tuple[Any, Any]]
NAMES = ("attention", "conv", "gates", "hidden")  # of activations: `named` marks them in the networks
GRAMMAR = "none, dots, names(save=a+b, offload=c), full, group(k), sqrt, nested, nested(levels), binomial(slots)"
OF_BIJECTIONS = "reversible, reversible(k)"
NUMBERED = {"group": True, "nested": False, "binomial": True, "reversible": False}  # and whether it must be said
LOG_BASE = 4  # of (7)
EVEN = 1.2  # memory over the least, up to which segments of (6) are all of one length


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One row of the table above, as it was spelt."""

    kind: str
    number: int = 0  # k, m or s; 0 is "not said"
    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()


def policy(spelling: str | None, bijection: bool = False) -> Policy:
    """Reads a setting such as `group(4)`; None is `none`.

    Args:
      bijection: whether what asks can be inverted.

    Raises:
      ValueError: there is no such policy; says which there are.
    """
    allowed = f"{GRAMMAR}{f', {OF_BIJECTIONS}' if bijection else ''}"
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", (spelling or "none").replace(" ", ""))
    kind, inside = match.groups() if match else ("", None)
    if kind in NUMBERED and re.fullmatch(r"[1-9]\d*", inside or ("" if NUMBERED[kind] else "1")):
        if kind == "reversible" and not bijection:
            raise ValueError(f"remat {spelling!r} is of stacked bijections (Glow) alone; allowed here are {allowed}")
        return Policy(kind=kind, number=int(inside or 0))
    if kind in ("none", "dots", "full", "sqrt") and inside is None:
        return Policy(kind=kind)
    if kind == "names" and (lists := re.fullmatch(r"(?:save=([\w+]+))?,?(?:offload=([\w+]+))?", inside or "")):
        save, offload = (tuple(text.split("+")) if text else () for text in lists.groups())
        unknown = [name for name in (*save, *offload) if name not in NAMES]
        if unknown:
            raise ValueError(f"remat {spelling!r}: no activation is named {unknown[0]!r}; there are {', '.join(NAMES)}")
        if save or offload:
            return Policy(kind=kind, save=save, offload=offload)
    raise ValueError(f"unknown remat policy {spelling!r}; allowed are {allowed}")


def named(x: Any, name: str) -> Any:
    """Marks an activation as one that `names` and `dots` may keep."""
    return checkpoint_name(x, name)


def checkpointed_scan(
    body: Body,
    carry: Any,
    xs: Any,
    remat: str | None,
    *,
    length: int | None = None,
    unroll: int = 1,
    run: Body | None = None,
) -> tuple[Any, Any]:
    """`lax.scan(body, carry, xs)`, its gradient by the policy.

    Args:
      unroll: steps a turn of the loop, where nothing is checkpointed.
      run: the same chain over many steps at once, where that is quicker than a scan of `body`: of all, or of a segment.

    Raises:
      ValueError: the policy is unknown.
      TypeError: nested or binomial, and a carry that is not floating-point, or changes its type.
    """
    chosen, carry = policy(remat), jax.tree.map(jnp.asarray, carry)
    if not jax.tree.leaves(xs):  # a chain that is told nothing but h
        told_nothing = body
        xs, body = jnp.arange(length or 0), lambda carry, _: told_nothing(carry, None)
    n = jax.tree.leaves(xs)[0].shape[0]
    if chosen.kind == "none" and run is not None:
        return run(carry, xs)
    if n == 1:  # f may then change the carry's shape
        only = body if chosen.kind == "none" else jax.checkpoint(body, policy=_saved(chosen))
        carry, y = only(carry, jax.tree.map(lambda leaf: leaf[0], xs))
        return carry, jax.tree.map(lambda leaf: leaf[None], y)
    if chosen.kind == "none" or n == 0:
        return jax.lax.scan(body, carry, xs, unroll=max(min(unroll, n), 1))
    if chosen.kind in ("nested", "binomial"):
        return revolved(body, carry, xs, _reversal(chosen, n))
    k = chosen.number if chosen.kind == "group" else 1
    if chosen.kind == "sqrt":
        k = segment_length(n, *bytes_kept(body, carry, jax.tree.map(lambda leaf: leaf[0], xs)))
    if k > 1:
        whole = run or (lambda carry, part: jax.lax.scan(body, carry, part))
        # A loop of two turns or more keeps XLA from merging the recomputation with the forward pass; the guard against
        # that would only cost time there.
        return in_parts(jax.checkpoint(whole, prevent_cse=False), k, carry, xs, jax.checkpoint(whole))
    return jax.lax.scan(jax.checkpoint(body, policy=_saved(chosen), prevent_cse=False), carry, xs)


def in_parts(run: Body, length: int, carry: Any, xs: Any, alone: Body | None = None) -> tuple[Any, Any]:
    """A chain as one part of `length` steps after another; the last may be shorter.

    Args:
      alone: in place of `run`, for parts that are not turns of a loop.
    """
    alone = alone or run
    n = jax.tree.leaves(xs)[0].shape[0]
    count, whole = n // length, n - n % length
    outputs = []
    if count > 1:
        parts = jax.tree.map(lambda leaf: leaf[:whole].reshape(count, length, *leaf.shape[1:]), xs)
        carry, ys = jax.lax.scan(run, carry, parts)
        outputs.append(jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), ys))
    for begin in range(whole if count > 1 else 0, n, length):
        carry, ys = alone(carry, jax.tree.map(lambda leaf: leaf[begin : begin + length], xs))  # noqa: B023, called here
        outputs.append(ys)
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *outputs) if len(outputs) > 1 else outputs[0]


def _reversal(chosen: Policy, n: int) -> Reversal:
    if chosen.kind == "binomial":
        return binomial(n, min(chosen.number, n))
    return nested(n, chosen.number or max(1, math.ceil(math.log(n, LOG_BASE) - 1e-9)))


def passes(spelling: str, n: int) -> int:
    """How often f is computed beside the first n times, in the gradient of a chain of n: (1), (4)–(8) above.

    Raises:
      ValueError: the policy is unknown, or what it spares depends on f.
    """
    chosen = policy(spelling)
    if chosen.kind in ("dots", "names"):
        raise ValueError(f"{spelling} computes parts of f again, which parts f says")
    if chosen.kind in ("nested", "binomial"):
        return _reversal(chosen, n).steps + 1 if n > 1 else n
    return 0 if chosen.kind == "none" else n


def _saved(chosen: Policy) -> Any:
    policies = jax.checkpoint_policies
    if chosen.kind == "dots":
        # Convolutions are named: their derivative is a rule of their own, models/convolution.py.
        return policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names("conv"))
    if chosen.kind == "names" and chosen.offload:
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(chosen.save),
            names_which_can_be_offloaded=list(chosen.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return policies.save_only_these_names(*chosen.save) if chosen.kind == "names" else None


def segment_length(n: int, c: int, a: int) -> int:
    """k of eq. (6): a divisor of n, unless these need much more memory than the best k does."""
    memory = lambda k: -(-n // k) * c + k * a  # noqa: E731
    best = min(range(1, n + 1), key=memory)
    even = min((k for k in range(1, n + 1) if n % k == 0), key=memory)
    return even if memory(even) <= EVEN * memory(best) else best


def bytes_kept(body: Body, carry: Any, x: Any) -> tuple[int, int]:
    """c and a, as the trace of one step and its derivative shows them.

    a also counts x twice: a segment's own x, parameters of blocks for instance, and their gradients, are held beside
    all the others while it is gone through again.
    """

    def kept(carry: Any, x: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(body, carry, x)[1])

    traced = jax.make_jaxpr(kept)(carry, x).jaxpr
    given = {*traced.invars, *traced.constvars}
    fresh = {v for v in traced.outvars if not hasattr(v, "val")} - given
    total = lambda tree: sum(_size(leaf) for leaf in jax.tree.leaves(tree))  # noqa: E731
    return total(carry), sum(_size(v.aval) for v in fresh) + 2 * total(x)


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 8)
