"""Losses that compare examples with examples: the verification signal, "are these two of one class?".

uᵢ is hᵢ/‖hᵢ‖ (or hᵢ itself, where said), Pᵢ = {j ≠ i: yⱼ = yᵢ}, Nᵢ = {j: yⱼ ≠ yᵢ}, all in one batch of B examples.

(1)  d_ij = ‖uᵢ − uⱼ‖² = ‖uᵢ‖² + ‖uⱼ‖² − 2 uᵢ·uⱼ,  r_ij = √d_ij
(2)  contrastive   c_ij = ½ d_ij for j ∈ Pᵢ, ½ max(0, m − r_ij)² for j ∈ Nᵢ   Hadsell 2006 eq. 4; 1406.4773 eq. 3
     mean over all pairs
(3)  triplet       c_apn = max(0, D_ap − D_an + m), p ∈ P_a, n ∈ N_a, D = d or r        1503.03832 eq. 1-3
     soft          c_apn = log(1 + e^(D_ap − D_an)): it has no margin                   1703.07737 §2
(4)  "all"         mean over all triplets, or over those that are not 0                 1703.07737 eq. 6, batch all (≠0)
(5)  "hard"        c_a = c of max_p D_ap and min_n D_an; mean over anchors              1703.07737 eq. 5
(6)  "semi_hard"   c_ap = c of D_ap and min {D_an > D_ap}; mean over pairs (a, p)       1503.03832 eq. 4
     Where no n is farther than p, the farthest is taken. Negatives nearer than p are left alone, so that of few in
     a batch this can be 0 with classes out of order: it wants large batches.
(7)  N-pair        Lᵢ = log(1 + Σ_{n ∈ Nᵢ} e^(hᵢ·hₙ − hᵢ·h_p)), p the next of Pᵢ        Sohn 2016 eq. 7
     in the batch, cyclically. The paper has one anchor a class, and of the other classes their p alone; here every
     example is an anchor, and so every one is a p. Its penalty on lengths is left to weight decay.
(8)  InfoNCE       L_ij = −log(e^(uᵢ·uⱼ/τ)/(e^(uᵢ·uⱼ/τ) + Σ_{n ∈ Nᵢ} e^(uᵢ·uₙ/τ)))     1807.03748 eq. 4
     mean over j ∈ Pᵢ of all i; of two examples a class it is NT-Xent                   2002.05709 eq. 1
(9)  supervised    Lᵢ = −1/|Pᵢ| Σ_{p ∈ Pᵢ} log(e^(uᵢ·u_p/τ)/Σ_{k ≠ i} e^(uᵢ·u_k/τ))    2004.11362 eq. 2, "out"
(10) inside        Lᵢ = −log(1/|Pᵢ| Σ_{p ∈ Pᵢ} e^(uᵢ·u_p/τ)/Σ_{k ≠ i} e^(uᵢ·u_k/τ))    2004.11362 eq. 3, "in"

(7), (9) and (10) are means over the i that have a Pᵢ. Each loss is given as one value an example, of which the batch's
mean is the mean that is said above: a pair's cost in (2) belongs to both its examples by halves, any other to its
anchor i or a. So values are scaled by B over the number of costs, and are not to be weighted one by one. Of a batch
that has nothing to compare all values are 0, and so are their derivatives.

All products are in full precision: d_ij is a small difference of large numbers. The derivative of r_ij is 0 where d_ij
is within the rounding of (1), of two that are the same. Nothing that is held is larger than B×B: (4) and (6) go over
the batch's examples as p, one at a time, of all anchors at once, and go over them again for the derivative.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.embedder import unit

PerExample = Float[Array, " b"]
PerPair = Float[Array, "b b"]
Pairs = Bool[Array, "b b"]


class Compared(NamedTuple):
    """What a batch's comparison gives."""

    value: PerExample
    active: Float[Array, ""]  # the part of what was compared that the loss learns from, see each


@dataclass(frozen=True, kw_only=True)
class MetricLoss(ABC):
    """Base of the losses (2) to (10), which are functions of the embeddings and their classes alone."""

    @abstractmethod
    def compare(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> Compared:
        """The values, in float32 or better, and a number for the log."""

    def __call__(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> PerExample:
        """One value an example; their mean is the loss."""
        return self.compare(h, label).value


def pairs(label: Int[Array, " b"]) -> tuple[Pairs, Pairs]:
    """Where j ∈ Pᵢ, and where j ∈ Nᵢ."""
    equal = label[:, None] == label[None, :]
    return equal & ~jnp.eye(len(label), dtype=bool), ~equal


def products(x: Float[Array, "b d"]) -> PerPair:
    """All inner products."""
    return jnp.einsum("id,jd->ij", x, x, precision=jax.lax.Precision.HIGHEST)


def distances(x: Float[Array, "b d"]) -> tuple[PerPair, PerPair]:
    """d and r of (1). Clipped at 0 in value alone: the derivative of d is right everywhere."""
    square = jnp.sum(x * x, axis=1)
    lengths = square[:, None] + square[None, :]
    d = lengths - 2.0 * products(x)
    d = d + jax.lax.stop_gradient(jnp.maximum(d, 0.0) - d)
    apart = d > 4.0 * jnp.finfo(d.dtype).eps * lengths
    return d, jnp.where(apart, jnp.sqrt(jnp.where(apart, d, 1.0)), 0.0)


def log_sum(s: PerPair, mask: Pairs) -> PerExample:
    """log Σⱼ e^{s_ij} over the j of a mask; 0 where there is none."""
    highest = jax.lax.stop_gradient(jnp.max(jnp.where(mask, s, -jnp.inf), axis=1))
    highest = jnp.where(mask.any(axis=1), highest, 0.0)
    total = jnp.sum(jnp.where(mask, jnp.exp(jnp.where(mask, s - highest[:, None], 0.0)), 0.0), axis=1)
    return highest + jnp.log(jnp.where(mask.any(axis=1), total, 1.0))


def averaged(cost: PerExample, count: Float[Array, ""] | Int[Array, ""]) -> PerExample:
    """Sums of costs as values whose mean is the mean of `count` costs."""
    return cost * (len(cost) / jnp.maximum(count, 1)).astype(cost.dtype)


def _points(h: Float[Array, "b d"], directions: bool) -> Float[Array, "b d"]:
    return unit(h) if directions else h.astype(jnp.promote_types(h.dtype, jnp.float32))


def _of_anchors(cost: PerExample, there: Bool[Array, " b"]) -> Compared:
    """The mean over the examples that have another of their class, and their part of the batch."""
    return Compared(averaged(jnp.where(there, cost, 0.0), there.sum()), there.mean(dtype=cost.dtype))


@dataclass(frozen=True, kw_only=True)
class Contrastive(MetricLoss):
    """Eq. (2). Active are the pairs whose cost is not 0.

    All pairs weigh the same, so of a batch of B in runs of E (data/grouped.py) those of one class are (E − 1)/(B − 1).
    """

    margin: float = 1.0  # m, in the units of r: between directions r is 2 at most
    unit: bool = True  # directions are compared, not h

    def __post_init__(self) -> None:
        if self.margin <= 0.0:
            raise ValueError(f"margin={self.margin} must be above 0")

    def compare(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> Compared:
        d, r = distances(_points(h, self.unit))
        same, other = pairs(label)
        cost = jnp.where(same, 0.5 * d, 0.0) + jnp.where(other, 0.5 * jax.nn.relu(self.margin - r) ** 2, 0.0)
        count = jnp.maximum((same | other).sum(), 1)
        return Compared(averaged(cost.sum(axis=1), count), (cost > 0.0).sum() / count.astype(d.dtype))


@dataclass(frozen=True, kw_only=True)
class Triplet(MetricLoss):
    """Eq. (3) to (6). Active are, of the triplets that mining leaves, those whose cost is not 0."""

    margin: float = 0.2  # m, in the units of D
    mining: Literal["all", "hard", "semi_hard"] = "all"
    soft: bool = False  # log(1 + e^…) in place of the hinge; the margin is then not used
    active: bool = False  # the mean is over active triplets alone
    squared: bool = True  # D is d, as FaceNet has it, not r, as 1703.07737 has
    unit: bool = True  # directions are compared, not h

    def __post_init__(self) -> None:
        if self.margin < 0.0:
            raise ValueError(f"margin={self.margin} must be at least 0")
        if self.soft and self.active:
            raise ValueError("active=True leaves out triplets whose cost is 0, and with soft=True there are none")

    def compare(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> Compared:
        d, r = distances(_points(h, self.unit))
        far = d if self.squared else r
        same, other = pairs(label)
        if self.mining == "hard":
            farthest = jnp.max(jnp.where(same, far, -jnp.inf), axis=1)
            nearest = jnp.min(jnp.where(other, far, jnp.inf), axis=1)
            sums = self._sums(farthest, same.any(axis=1), nearest[:, None], other.any(axis=1)[:, None])
        else:
            sums = self._over_positives(far, same, other)
        cost, triplets, active = sums
        count = triplets.sum()
        value = averaged(cost, active.sum() if self.active else count)
        return Compared(value, active.sum() / jnp.maximum(count, 1.0))

    def _over_positives(self, far: PerPair, same: Pairs, other: Pairs) -> tuple[PerExample, ...]:
        """Every example in turn as the p of all anchors, so that anchors stay on the devices that have them."""
        farthest = jnp.max(jnp.where(other, far, -jnp.inf), axis=1, keepdims=True)

        @jax.checkpoint
        def one(total: Any, column: Any) -> tuple[Any, None]:
            far_p, positive = column
            if self.mining == "all":
                negatives, there = far, other
            else:
                beyond = other & (far > far_p[:, None])
                nearest = jnp.min(jnp.where(beyond, far, jnp.inf), axis=1, keepdims=True)
                negatives = jnp.where(beyond.any(axis=1, keepdims=True), nearest, farthest)
                there = other.any(axis=1, keepdims=True)
            return jax.tree.map(jnp.add, total, self._sums(far_p, positive, negatives, there)), None

        zero = jnp.zeros_like(far[:, 0])
        return jax.lax.scan(one, (zero, zero, zero), (far.T, same.T))[0]

    def _sums(
        self, far_p: PerExample, positive: Bool[Array, " b"], far_n: Float[Array, "b n"], there: Bool[Array, "b n"]
    ) -> tuple[PerExample, ...]:
        """Of each anchor with one p and any n: the sum of costs, the number of triplets and that of active ones."""
        taken = positive[:, None] & there
        gap = jnp.where(taken, jnp.where(taken, far_p[:, None], 0.0) - jnp.where(taken, far_n, 0.0), 0.0)
        cost = jax.nn.softplus(gap) if self.soft else jax.nn.relu(gap + self.margin)
        cost = jnp.where(taken, cost, 0.0)
        return tuple(jnp.sum(part.astype(cost.dtype), axis=1) for part in (cost, taken, cost > 0.0))


@dataclass(frozen=True, kw_only=True)
class NPair(MetricLoss):
    """Eq. (7), of the embeddings' inner products. Active are the examples that have another of their class."""

    def compare(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> Compared:
        s = products(_points(h, False))
        same, other = pairs(label)
        index = jnp.arange(len(label))
        ahead = (index[None, :] - index[:, None]) % len(label)
        following = jnp.argmin(jnp.where(same, ahead, len(label)), axis=1)
        positive = jnp.take_along_axis(s, following[:, None], axis=1)[:, 0]
        cost = jnp.where(other.any(axis=1), jax.nn.softplus(log_sum(s, other) - positive), 0.0)
        return _of_anchors(cost, same.any(axis=1))


@dataclass(frozen=True, kw_only=True)
class _Tempered(MetricLoss):
    temperature: float = 0.1  # τ

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature={self.temperature} must be above 0")


@dataclass(frozen=True, kw_only=True)
class InfoNCE(_Tempered):
    """Eq. (8). Active are the examples that have another of their class."""

    def compare(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> Compared:
        s = products(unit(h)) / self.temperature
        same, other = pairs(label)
        cost = jax.nn.softplus(log_sum(s, other)[:, None] - s)
        cost = jnp.where(same & other.any(axis=1, keepdims=True), cost, 0.0)
        return Compared(averaged(cost.sum(axis=1), same.sum()), same.any(axis=1).mean(dtype=s.dtype))


@dataclass(frozen=True, kw_only=True)
class SupervisedContrastive(_Tempered):
    """Eq. (9), or (10). Active are the examples that have another of their class."""

    inside: bool = False  # (10): the mean over positives is inside the logarithm

    def compare(self, h: Float[Array, "b d"], label: Int[Array, " b"]) -> Compared:
        s = products(unit(h)) / self.temperature
        same, other = pairs(label)
        size = jnp.maximum(same.sum(axis=1), 1).astype(s.dtype)
        mean = jnp.sum(jnp.where(same, s, 0.0), axis=1) / size
        positive = log_sum(s, same) - jnp.log(size) if self.inside else mean
        return _of_anchors(log_sum(s, same | other) - positive, same.any(axis=1))
