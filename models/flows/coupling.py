"""Coupling layers: one part of x is moved by functions whose parameters a network reads off the other part.

    (1)  z_seen = x_seen,  z_moved = τ(x_moved; net(x_seen))                       1410.8516 §3.2, 1605.08803 §3.2
    (2)  log|det| = Σ log|∂τ/∂x_moved|:  the Jacobian is triangular

τ is additive, affine or a spline; net is any Linen module, and never inverted.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params, merge, per_example, split
from models.flows.combinators import Within
from models.flows.conditioners import Conditioner, MLPConditioner
from models.flows.elementwise import Affine, Elementwise, Raw
from models.flows.masks import Halves, Mask, Part, Seen
from models.model import Condition


@dataclass(frozen=True, kw_only=True)
class Coupling(Bijection):
    """Eq. (1)."""

    transform: Elementwise = field(default_factory=Affine)  # τ
    conditioner: Conditioner = field(default_factory=MLPConditioner)  # net
    mask: Mask = field(default_factory=Halves)

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        seen, moved = self.mask.split(x)
        count = self.transform.count * moved.shape[-1]
        return self.conditioner.init(key, seen, condition, count)["params"]

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        seen, moved = self.mask.split(x)
        moved, logdet = self._move(self._raw(params, seen, moved, condition), moved)
        return self.mask.merge(seen, moved), logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        seen, moved = self.mask.split(z)
        back, slopes = self.transform.inverse(self._raw(params, seen, moved, condition), moved)
        return self.mask.merge(seen, back), self._summed(slopes, back)

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        """The network is run once: what it sees is the same on both sides."""
        seen, moved = self.mask.split(z)
        seen_bar, moved_bar = self.mask.split(z_bar)
        trained, constants = split(params)
        floats, rest = split(condition or {})

        def network(params: Any, seen: Seen, floats: Any) -> Raw:
            return self._raw(merge(params, constants), seen, moved, merge(floats, rest) or None)

        raw, through_network = jax.vjp(network, trained, seen, floats)
        back, _ = self.transform.inverse(raw, moved)
        _, through_transform = jax.vjp(self._move, raw, back)
        raw_bar, back_bar = through_transform((moved_bar, logdet_bar))
        params_bar, also_seen_bar, condition_bar = through_network(raw_bar)
        x, x_bar = self.mask.merge(seen, back), self.mask.merge(seen_bar + also_seen_bar, back_bar)
        return x, x_bar, params_bar, condition_bar

    def _raw(self, params: Params, seen: Seen, moved: Part, condition: Condition) -> Raw:
        k, c = self.transform.count, moved.shape[-1]
        out: Any = self.conditioner.apply({"params": params}, seen, condition, k * c)
        return out.astype(jnp.promote_types(moved.dtype, jnp.float32)).reshape(*moved.shape[:-1], k, c)

    def _move(self, raw: Raw, moved: Part) -> tuple[Part, Float[Array, " b"]]:
        moved, slopes = self.transform.forward(raw, moved)
        return moved, self._summed(slopes, moved)

    def _summed(self, slopes: Part, moved: Part) -> Float[Array, " b"]:
        return per_example(slopes * self.mask.counts(moved))


@dataclass(frozen=True, kw_only=True)
class FactorOut(Within):
    """`bijection` on the part that the mask shows; the rest is latent already (1605.08803 §3.6, 1807.03039 §3).

    A coupling before it, with this mask and an affine transform, turns what is left of the rest into a standard normal
    variable given the part that goes on: that coupling is Glow's learned prior, as a bijection. The mask is `Halves`:
    what a checkerboard shows is as large as x, and a bijection within would count its gaps.
    """

    mask: Halves = field(default_factory=Halves)

    def open(self, x: Float[Array, "b *s"]) -> tuple[Float[Array, "b *t"], Any]:
        return self.mask.split(x)

    def close(self, shown: Float[Array, "b *t"], rest: Any) -> Float[Array, "b *s"]:
        return self.mask.merge(shown, rest)
