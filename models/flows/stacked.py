"""Depth: equal bijections as one `lax.scan` over stacked parameters, and ways to differentiate through it.

    (1)  (h_{i+1}, ℓ_{i+1}) = (f(h_i; θ_i), ℓ_i + log|det ∂f(h_i; θ_i)|),  i = 0 … L−1
    (2)  backwards through (1) from h_L alone:  h_i = f⁻¹(h_{i+1}; θ_i), then the cotangents of f at h_i
         as reversible residual networks do it                                                      1707.04585 §3.2

`remat` is any policy of models/remat.py, by which (1) is differentiated as other chains are, or

    reversible       eq. (2): h_L is kept, and an inverse pass is made
    reversible(K)    besides, h_K, h_2K, … are kept, the anchors; K divides L

Eq. (2) in floating point gives back h_i with an error that grows with every layer walked, as steeply as f⁻¹ stretches.
An anchor ends that growth: the walk starts anew from what was kept. `observe` says how far off a walk ends.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params, merge, split, zeros
from models.model import Condition
from models.remat import checkpointed_scan, policy

TINY = 1e-30  # an example that is all 0 is no division by 0
OBSERVED = 8  # examples whose way back is looked at: an inverse pass of the whole batch would cost a third of a step


@dataclass(frozen=True, kw_only=True)
class Stacked(Bijection):
    """Eq. (1): `depth` bijections like `block`, which must keep the shape of x. The inverse is the scan in reverse."""

    block: Bijection
    depth: int
    remat: str | None = None  # what is kept for the gradient; see above

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"{self.depth=} must be at least 1")
        if self.reversible and self.depth % self.stretch:
            raise ValueError(f"{self.remat}: the distance of anchors must divide depth={self.depth}")

    @property
    def reversible(self) -> bool:
        """Whether eq. (2) is how it is differentiated."""
        return policy(self.remat, bijection=True).kind == "reversible"

    @property
    def stretch(self) -> int:
        """Layers from one anchor to the next."""
        return policy(self.remat, bijection=True).number or self.depth

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        def body(x: Any, key: Any) -> tuple[Any, Params]:
            params = self.block.init(key, x, condition)
            return self.block.forward(params, x, condition)[0], params

        return jax.lax.scan(body, x, jax.random.split(key, self.depth))[1]

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        if self.reversible:
            return self._reversible(params, x, condition)
        return self._run(params, x, condition)[:2]

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        def body(carry: Moved, params: Params) -> tuple[Moved, None]:
            x, change = self.block.inverse(params, carry[0], condition)
            return (x, carry[1] + change), None

        return jax.lax.scan(body, (z, zeros(z)), params, length=self.depth, reverse=True)[0]

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        body = lambda z, params: (self.block.pull(params, z, condition), None)  # noqa: E731
        return jax.lax.scan(body, z, params, length=self.depth, reverse=True)[0]

    def observe(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Any:
        """What the blocks say, summed; or, of the reversible walk, `reconstruction_error`: ‖h̃ − h‖/‖h‖ where it ends.

        That is the mean over a few examples. With anchors each walk ends at one, and it is the largest that is said.
        """
        if not self.reversible:
            return self._run(params, x, condition, observed=True)
        few = jax.tree.map(lambda leaf: leaf[:OBSERVED], condition)
        start, params_now = jax.lax.stop_gradient((x[:OBSERVED], params))
        group = Stacked(block=self.block, depth=self.stretch)

        def body(h: Any, params: Params) -> tuple[Any, Any]:
            end, _ = group.forward(params, h, few)
            away = group.pull(params, end, few) - h
            axes = tuple(range(1, h.ndim))
            return end, jnp.mean(jnp.sqrt(jnp.sum(away**2, axes) / jnp.maximum(jnp.sum(h**2, axes), TINY)))

        _, errors = jax.lax.scan(body, start, self._grouped(params_now), length=self.depth // group.depth)
        return (*self.forward(params, x, condition), {"reconstruction_error": jnp.max(errors)})

    def _grouped(self, params: Params) -> Params:
        """Leaves [L, …] as [L/K, K, …]."""
        k = self.stretch
        return jax.tree.map(lambda leaf: leaf.reshape(-1, k, *leaf.shape[1:]), params)

    def _run(self, params: Params, x: Float[Array, "b *s"], condition: Condition, observed: bool = False) -> Any:
        """Eq. (1): z, the log-determinant and, if asked, what the blocks say, summed."""

        def body(carry: Moved, params: Params) -> tuple[Moved, Any]:
            if observed:
                z, change, numbers = self.block.observe(params, carry[0], condition)
            else:
                (z, change), numbers = self.block.forward(params, carry[0], condition), {}
            return (z, carry[1] + change), numbers

        remat = "none" if self.reversible else self.remat
        (z, logdet), numbers = checkpointed_scan(body, (x, zeros(x)), params, remat, length=self.depth)
        return z, logdet, jax.tree.map(lambda every: jnp.sum(every, axis=0), numbers)

    def _reversible(self, params: Params, x: Float[Array, "b *s"], condition: Condition) -> Moved:
        """Eq. (1) with (2) for its gradient. Reverse mode only."""
        group = Stacked(block=self.block, depth=self.stretch)

        # Everything is an argument: a rule for gradients may not close over values that are being traced.
        @jax.custom_vjp
        def run(trained: Params, constants: Params, x: Any, floats: Any, rest: Any) -> Moved:
            return self._run(merge(trained, constants), x, merge(floats, rest) or None)[:2]

        def ahead(trained: Params, constants: Params, x: Any, floats: Any, rest: Any) -> tuple[Moved, Any]:
            condition = merge(floats, rest) or None

            def body(carry: Moved, params: Params) -> tuple[Moved, Any]:
                z, change = group.forward(params, carry[0], condition)
                return (z, carry[1] + change), z

            grouped = self._grouped(merge(trained, constants))
            (z, logdet), anchors = jax.lax.scan(body, (x, zeros(x)), grouped, length=self.depth // group.depth)
            return (z, logdet), (trained, constants, anchors, floats, rest)

        def back(kept: Any, bars: Any) -> Any:
            trained, constants, anchors, floats, rest = kept
            condition, (z_bar, logdet_bar) = merge(floats, rest) or None, bars

            def layer(carry: Any, params: Params) -> tuple[Any, Any]:
                z, z_bar, condition_bar = carry
                x, x_bar, params_bar, change = self.block.backward(params, z, condition, z_bar, logdet_bar)
                return (x, x_bar, jax.tree.map(jnp.add, condition_bar, change)), params_bar

            def walk(carry: Any, row: Any) -> tuple[Any, Any]:
                params, anchor = row
                z_bar, condition_bar = carry
                (_, *carry), params_bar = jax.lax.scan(
                    layer, (anchor, z_bar, condition_bar), params, length=group.depth, reverse=True
                )
                return tuple(carry), params_bar

            rows = (self._grouped(merge(trained, constants)), anchors)
            start = (z_bar, jax.tree.map(jnp.zeros_like, floats))
            (x_bar, condition_bar), params_bar = jax.lax.scan(walk, start, rows, reverse=True)
            params_bar = jax.tree.map(lambda leaf: leaf.reshape(self.depth, *leaf.shape[2:]), params_bar)
            return params_bar, None, x_bar, condition_bar, None

        run.defvjp(ahead, back)
        trained, constants = split(params)
        return run(trained, constants, x, *split(condition or {}))
