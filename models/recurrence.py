"""A scan over time whose weights' gradients are one matrix product each.

    (1)  (h_t, o_t) = cell(x_t, h_{t−1}),  in which weights U are met only as p_t = y_t·U + a_t, y_t a function of
         h_{t−1} and a_t known for all t beforehand
    (2)  ∂L/∂U = Σ_t y_tᵀ·p̄_t = Yᵀ·P̄,  p̄_t = ∂L/∂p_t = ∂L/∂a_t,  Y and P̄ all y_t and p̄_t as rows
                                                                                       back-propagation through time

Differentiating a scan adds y_tᵀ·p̄_t to an array of U's size at every step, and multiplies by Uᵀ read column by column.
Here the backward scan finds p̄_t alone, by a Uᵀ that is laid out once, and the sum over time is the one product of (2):
what a library's fused kernels do, for any cell.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.remat import checkpointed_scan, in_parts, named

Weights = Mapping[str, Float[Array, "f g"]]
Added = Mapping[str, Float[Array, "t b g"]]
Multiply = Callable[[str, Float[Array, "b f"]], Float[Array, "b g"]]  # multiply(name, y) = y·U + a of that name
Prepare = Callable[[Any], tuple[Any, Added]]
Cell = Callable[[Multiply, Any, Any, Any], tuple[Any, Any]]  # cell(multiply, params, carry, x) → (carry, output)


@jax.custom_vjp
def _product(y: Float[Array, "b f"], u: Float[Array, "f g"], transposed: Float[Array, "g f"]) -> Float[Array, "b g"]:
    """y·U, differentiated with respect to y alone."""
    return y @ u


def _product_forward(y: Any, u: Any, transposed: Any) -> tuple[Any, Any]:
    return y @ u, transposed


def _product_backward(transposed: Any, p: Any) -> tuple[Any, None, None]:
    return p @ transposed, None, None


_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: Cell, params: Any, weights: Weights, carry: Any, xs: tuple[Any, Added]) -> tuple[Any, Any]:
    """`lax.scan` of a cell over time: the last carry, and all outputs stacked.

    Args:
      cell: eq. (1); calls `multiply` once for each name of `weights`. It must be a function without arrays of its own:
        what else it needs is in `params`, and is differentiated as in any scan.
      xs: x_t, any tree, and a_t by the weights' names, stacked on the leading axis.
    """

    def body(carry: Any, row: Any) -> tuple[Any, Any]:
        x, added = row
        return cell(lambda name, y: y @ weights[name] + added[name], params, carry, x)

    return jax.lax.scan(body, carry, xs)


def _forward(cell: Cell, params: Any, weights: Weights, carry: Any, xs: Any) -> tuple[Any, Any]:
    transposed = {name: jnp.array(u.T) for name, u in weights.items()}

    def run(params: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
        def body(carry: Any, row: Any) -> tuple[Any, Any]:
            x, added = row
            met: dict[str, Any] = {}

            def multiply(name: str, y: Any) -> Any:
                met[name] = y
                return _product(y, weights[name], transposed[name]) + added[name]

            carry, output = cell(multiply, params, carry, x)
            return carry, (output, met)

        carry, (outputs, met) = jax.lax.scan(body, carry, xs)
        return (carry, outputs), met

    result, pullback, met = jax.vjp(run, params, carry, xs, has_aux=True)
    return result, (pullback, met)


def _backward(cell: Cell, residuals: Any, cotangent: Any) -> tuple[Any, Any, Any, Any]:
    pullback, met = residuals
    params, carry, xs = pullback(cotangent)
    rows = lambda y: y.reshape(-1, y.shape[-1])  # noqa: E731
    return params, {name: rows(y).T @ rows(xs[1][name]).astype(y.dtype) for name, y in met.items()}, carry, xs


recur.defvjp(_forward, _backward)


def over_time(
    cell: Cell,
    params: Any,
    weights: Weights,
    carry: Any,
    xs: Any,
    prepare: Prepare = lambda xs: xs,
    *,
    dtype: Any = None,
    reverse: bool = False,
    remat: str | None = None,
    window: int = 0,
) -> tuple[Any, Any]:
    """`recur` over `prepare(xs)`, in parts where it is asked for.

    Args:
      xs: what the steps are made from, stacked on the leading axis.
      prepare: from xs, of any number of steps, to x_t and a_t of `recur`. What it makes is many times as wide as what
        it is made from; where steps are computed again, it is made again with them.
      dtype: of the products y_t·U; None is U's own. U is cast within a step or a segment, so that what these add to its
        gradient is summed in its own.
      reverse: from the last step to the first.
      remat: gradient checkpointing, models/remat.py. A segment of steps keeps its one product (2); policies of single
        steps add to an array of U's size at every step.
      window: truncated back-propagation through time: no gradient flows from one run of so many steps into the run
        before it (Williams & Peng 1990); 0 cuts nowhere.
    """

    def cast() -> Weights:
        return {name: u.astype(dtype or u.dtype) for name, u in weights.items()}

    def many(carry: Any, part: Any) -> tuple[Any, Any]:
        return recur(cell, params, cast(), carry, prepare(part))

    def one(carry: Any, part: Any) -> tuple[Any, Any]:
        x, added = jax.tree.map(lambda leaf: leaf[0], prepare(jax.tree.map(lambda leaf: leaf[None], part)))
        own = cast()
        return cell(lambda name, y: named(y @ own[name] + added[name], "gates"), params, carry, x)

    def run(carry: Any, part: Any) -> tuple[Any, Any]:
        return checkpointed_scan(one, carry, part, remat, run=many)

    backwards = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree) if reverse else tree  # noqa: E731
    if window:
        cut = lambda carry, part: run(jax.lax.stop_gradient(carry), part)  # noqa: E731
        carry, outputs = in_parts(cut, window, carry, backwards(xs))
    else:
        carry, outputs = run(carry, backwards(xs))
    return carry, backwards(outputs)
