"""Chains gone through backwards by a plan (models/reversal_plan.py), from the few states that it keeps.

    (1)  of h_{i+1} = f(h_i, x_i), for i = n−1 … 0: h_i anew from the nearest state kept before it, then
         h̄_i = (∂f/∂h)ᵀ·h̄_{i+1}, x̄_i = (∂f/∂x)ᵀ·h̄_{i+1}

The whole backward pass is one `lax.scan` over the plan's rows: nothing is unrolled, at any n. Gradients of x_i are
written where they belong, and no x is copied.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from models.reversal_plan import Reversal

TURNS = "turns="


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
