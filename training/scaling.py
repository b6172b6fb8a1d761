"""Dynamic loss scaling: float16 has too few exponents for gradients, which are moved into its range (1710.03740 §3.2).

    (1)  g = (∂ S·L/∂θ)/S,  the division in float32
    (2)  a step whose ‖g‖ is not finite is not taken: θ, its average, optimiser and model state stay as they are
    (3)  S ← max(S/factor, smallest) after such a step;  S ← min(S·factor, largest) after `every` good ones in a row

A power of two changes no bit of what neither overflows nor underflows. What a loss updates by itself (the head of
losses/fused_head.py) has its gradient from no S, in float32, and is as right as without; by (2) it stays where it is
with the rest, for which XLA keeps the head of before the step: a head that fills the device should not be trained so.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Scale(NamedTuple):
    """What a run carries from step to step."""

    scale: Float[Array, ""]  # S
    good: Int[Array, ""]  # steps taken since S was last changed


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """(1)–(3). Every setting but `every` is a power of two."""

    initial: float = 2.0**15  # S of the first step; steps that overflow at it are not taken, and cost no more
    every: int = 2000  # good steps in a row, after which S grows
    factor: float = 2.0  # by which S grows, and shrinks
    smallest: float = 1.0
    largest: float = 2.0**24

    def __post_init__(self) -> None:
        powers = {name: getattr(self, name) for name in ("initial", "factor", "smallest", "largest")}
        wrong = [f"{name}={value}" for name, value in powers.items() if value <= 0.0 or math.frexp(value)[0] != 0.5]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be a power of two, such as 1024 or 0.5: others change gradients")
        if not self.smallest <= self.initial <= self.largest or self.largest > 2.0**120:
            raise ValueError(f"{self}: smallest <= initial <= largest <= 2^120 must hold")
        if self.factor < 2.0 or self.every < 1:
            raise ValueError(f"{self}: factor must be at least 2 and every at least 1")

    def begin(self) -> Scale:
        """Before the first step."""
        return Scale(jnp.asarray(self.initial, jnp.float32), jnp.zeros((), jnp.int32))

    def after(self, now: Scale, finite: Bool[Array, ""]) -> Scale:
        """(3)."""
        good = jnp.where(finite, now.good + 1, 0)
        grow = good >= self.every
        grown = jnp.where(grow, jnp.minimum(now.scale * self.factor, self.largest), now.scale)
        scale = jnp.where(finite, grown, jnp.maximum(now.scale / self.factor, self.smallest))
        return Scale(scale, jnp.where(grow, 0, good))
