"""Floating-point operations of a traced function's matrix products and convolutions, counted in its jaxpr.

    (1)  dot_general            2·|out|·k, k the product of the contracted sizes
    (2)  conv_general_dilated   2·|batch|·|out channels|·(in channels of a group)·Πᵢ nᵢ, nᵢ the pairs (place, tap) of
                                spatial axis i that meet a number, and no zero of the padding or of a dilation
    (3)  ragged_dot_general     2·|left|·|right's own columns|
    (4)  cuDNN's attention      2 products forward, 4 backward, each 2·|Q|·S; a causal one counts the whole square, as
                                one that is written out does

A multiply-add is 2. By (2) a convolution and both its gradients are the same pairs, and cost the same; XLA counts them
so, too. Element-wise work, factorisations, and FFTs are not counted, nor what a kernel of one's own (Pallas) does.

XLA's own `cost_analysis()` counts a loop's body once, whatever its trip count is: of a network whose blocks are under
`lax.scan` it sees one. Here

    scan         is its body times its length,
    cond         is its dearest branch,
    while        is its body times its trips where the jaxpr shows a counter that goes from a number to a number in
                 equal steps, or where its body says their mean (models/revolve.py, `turning`); and its body once where
                 neither is so: what stops when the data say so is counted too low,
    shard_map    is its body times the parts that what it takes or gives is split into: devices along an axis over
                 which nothing is split all do the same, which counts once,

and every other call is what it calls. What is traced is counted, whether XLA then leaves it out or not.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from models.revolve import TURNS

Known = Mapping[Any, int]  # variables of a jaxpr that are whole numbers known when it is traced
COMPARED = {"lt": (1, 0), "le": (1, 1), "gt": (-1, 0), "ge": (-1, -1)}  # the counter's direction; the end's shift
MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def matmul_flops(f: Callable[..., Any] | core.ClosedJaxpr, *args: Any) -> int:
    """Operations of one call, on all devices together.

    Args:
      f: a function, which is traced and not run, or a jaxpr.
      args: of the function, arrays or their shapes (`jax.ShapeDtypeStruct`).
    """
    closed = f if isinstance(f, core.ClosedJaxpr) else jax.make_jaxpr(f)(*args)
    return _jaxpr(closed.jaxpr, {})


def _jaxpr(jaxpr: Any, known: Known) -> int:
    return sum(_equation(equation, known) for equation in jaxpr.eqns)


def _equation(equation: Any, known: Known) -> int:
    name, params = equation.primitive.name, equation.params
    if name in LEAVES:
        return LEAVES[name](equation)
    if name == "cond":
        return max(_call(branch, equation.invars[1:], known) for branch in params["branches"])
    if name == "while":
        trips = _trips(equation, known)
        body = params["body_jaxpr"].jaxpr
        if trips is None:
            return round(_said(body) * _jaxpr(body, {})) + _jaxpr(params["cond_jaxpr"].jaxpr, {})
        return (trips + 1) * _jaxpr(params["cond_jaxpr"].jaxpr, {}) + trips * _jaxpr(body, {})
    if name == "scan":
        return params["length"] * _jaxpr(params["jaxpr"].jaxpr, {})
    if name == "custom_linear_solve":  # its other functions are for its derivatives
        return _jaxpr(params["jaxprs"].solve.jaxpr, {})
    inside = sum(_call(called, equation.invars, known) for called in core.jaxprs_in_params(params))
    return inside * (_parts(params) if name == "shard_map" else 1)


def _call(called: Any, arguments: Any, known: Known) -> int:
    jaxpr = getattr(called, "jaxpr", called)
    told: dict[Any, int] = {}
    if len(jaxpr.invars) == len(arguments):
        pairs = zip(jaxpr.invars, arguments, strict=True)
        told = {inner: value for inner, outer in pairs if (value := _number(outer, known)) is not None}
    return _jaxpr(jaxpr, told)


def _parts(params: Mapping[str, Any]) -> int:
    places = [place for spec in (*params["in_specs"], *params["out_specs"]) for place in spec if place]
    axes = {axis for place in places for axis in (place if isinstance(place, tuple) else (place,))}
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _dot(equation: Any) -> int:
    left, right = (operand.aval.shape for operand in equation.invars)
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    rows = math.prod(size for i, size in enumerate(left) if i not in (*contracted, *batch))
    return 2 * rows * math.prod(right)


def _convolution(equation: Any) -> int:
    left, right = (operand.aval.shape for operand in equation.invars)
    out, params = equation.outvars[0].aval.shape, equation.params
    of = params["dimension_numbers"]
    (batch, channels, *places), (_, inner, *taps), (_, _, *axes) = of.out_spec, of.rhs_spec, of.lhs_spec
    pairs = 1
    for i, axis in enumerate(axes):
        low, stride = params["padding"][i][0], params["window_strides"][i]
        spread, hole = params["lhs_dilation"][i], params["rhs_dilation"][i]
        at = np.arange(out[places[i]])[:, None] * stride + np.arange(right[taps[i]])[None, :] * hole - low
        pairs *= int(np.sum((at >= 0) & (at <= (left[axis] - 1) * spread) & (at % spread == 0)))
    return 2 * out[batch] * out[channels] * right[inner] * pairs


def _ragged(equation: Any) -> int:
    left, right = (operand.aval.shape for operand in equation.invars[:2])
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    shared = (*contracted, *batch, *numbers.rhs_group_dimensions)
    return 2 * math.prod(left) * math.prod(size for i, size in enumerate(right) if i not in shared)


def _attention(products: int) -> Callable[[Any], int]:
    def count(equation: Any) -> int:
        q, k = (operand.aval.shape for operand in equation.invars[:2])
        places = k[2] if equation.params["layout"] else k[1]  # [B, heads, S, d] or [B, S, heads, d]
        return products * 2 * math.prod(q) * places

    return count


LEAVES: Mapping[str, Callable[[Any], int]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "ragged_dot_general": _ragged,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(4),
    "pallas_call": lambda equation: 0,
}


def _trips(equation: Any, known: Known) -> int | None:
    """How often a while loop's body runs; None where the jaxpr does not show it."""
    params = equation.params
    test, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    given = [_number(operand, known) for operand in equation.invars]
    carried, passed = given[of_test + of_body :], body.invars[of_body:]
    # What the body hands on as it came is a number throughout.
    fixed = [value if out is var else None for value, out, var in zip(carried, body.outvars, passed, strict=True)]
    numbers = dict(zip(test.invars, [*given[:of_test], *fixed], strict=True))
    ends: Known = {var: value for var, value in numbers.items() if value is not None}
    place = {var: i for i, var in enumerate(test.invars[of_test:])}

    for name, counter, end in _compared(test):
        stop, i = _number(end, ends), None if _is_literal(counter) else place.get(counter)
        start = None if i is None else carried[i]
        if stop is None or i is None or start is None:
            continue
        constants = zip(body.invars[:of_body], given[of_test : of_test + of_body], strict=True)
        step = _step(body, body.outvars[i], passed[i], {var: value for var, value in constants if value is not None})
        direction, shift = COMPARED[name]
        if step and step * direction > 0:
            return len(range(start, stop + shift, step))
    return None


def _said(body: Any) -> float:
    """The mean number of turns that a loop's body says."""
    names = [equation.params["name"] for equation in body.eqns if equation.primitive.name == "name"]
    return next((float(name.removeprefix(TURNS)) for name in names if name.startswith(TURNS)), 1.0)


def _compared(test: Any) -> Iterator[tuple[str, Any, Any]]:
    """The comparison that a loop's test is, read from either side."""
    for equation in test.eqns:
        name = equation.primitive.name
        if equation.outvars[0] is test.outvars[0] and name in COMPARED:
            a, b = equation.invars
            yield name, a, b
            yield MIRRORED[name], b, a


def _step(body: Any, out: Any, counter: Any, known: Known) -> int | None:
    """What a turn adds to the counter, if it adds a number."""
    for equation in body.eqns:
        name = equation.primitive.name
        if equation.outvars[0] is out and name in ("add", "sub"):
            a, b = equation.invars
            if a is counter and (value := _number(b, known)) is not None:
                return value if name == "add" else -value
            if b is counter and name == "add":
                return _number(a, known)
    return None


def _is_literal(operand: Any) -> bool:
    return isinstance(operand, core.Literal)


def _number(operand: Any, known: Known) -> int | None:
    if not _is_literal(operand):
        return known.get(operand)
    value = np.asarray(operand.val) if np.ndim(operand.val) == 0 else None
    return int(value) if value is not None and np.issubdtype(value.dtype, np.integer) else None
