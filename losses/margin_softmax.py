"""Margins: what a softmax over classes is shown in place of the target's logit.

θ is the angle between an embedding x and its class's direction w, r = ‖x‖·‖w‖ (‖x‖ where w is taken at unit length),
s a fixed scale, ψ(θ) = (−1)^k cos(mθ) − 2k on θ ∈ [kπ/m, (k+1)π/m]. Other logits are r·cosθⱼ (1, 2) or s·cosθⱼ (3 on).
Beside each, the boundary at which class 1 is told from class 2, of equal ‖w‖:

     target logit                                                  decided for 1 where
(0)  softmax       r cosθ                                          θ₁ < θ₂
(1)  L-Softmax     r ψ(θ)                     1612.02295 eq. 5-6   mθ₁ < θ₂ (θ₁ ≤ π/m)
(2)  A-Softmax     ‖x‖ ψ(θ)                   1704.08063 eq. 7     mθ₁ < θ₂: w at unit length, angles alone decide
     both annealed: (λ r cosθ + r ψ)/(1 + λ), λ = max(λ_min, λ₀/(1 + γt))                          1704.08063 app. F
(3)  NormFace      s cosθ                     1704.06369 §3.2      θ₁ < θ₂
(4)  AM, CosFace   s (cosθ − m)               1801.05599; 1801.09414 eq. 4       cosθ₁ − m > cosθ₂
(5)  ArcFace       s cos(θ + m)               1801.07698 eq. 3     θ₁ + m < θ₂: an arc of m, whatever θ
     cos(θ + m) rises again past θ = π − m. "hard": s(cosθ − m sin m) there, below by cos m + m sin m − 1 (in units of
     s) where it begins; "easy": s cosθ where θ > π/2; "exact": as it stands
(6)  combined      s (ψ₁(m₁θ + m₂) − m₃)      1801.07698 eq. 4     cos(m₁θ₁ + m₂) − m₃ > cosθ₂
     ψ₁(φ) = (−1)^k cosφ − 2k, k = ⌊φ/π⌋: cosφ up to π, and falling behind it
(7)  AdaFace       s (cos(θ − mẑ) − mẑ − m)   2204.00964 eq. 14-16 ẑ = clip(h(‖x‖ − μ)/σ, ±1) over the batch, held
     constant: an arc where norms are small, a cosine's margin where they are large; cos(θ₁ − mẑ) − mẑ − m > cosθ₂
(8)  MagFace       s cos(θ + m(a))            2103.06627 eq. 3-5   m(a) linear in a = ‖x‖; adds λ_g(1/a + a/u²) to the
     loss, whose least is where x is as long as its class is easy; θ₁ + m(a) < θ₂
(9)  SphereFace2   K classifiers of one class each, not a softmax (2108.01513 eq. 7): with g(c) = 2((c + 1)/2)^t − 1
     λ/s·log(1 + e^(−s(g(cosθ) − m) − b)) + (1 − λ)/s·Σ_{j≠y} log(1 + e^(s(g(cosθⱼ) + m) + b)): decided for 1 where
     s(g(cosθ₁) − m) + b > 0 and the same with + m is below 0 of the others

Sub-centre ArcFace (ECCV 2020) is (5) with a head of K rows a class, cosθ being the largest of the class's K.

Gradients. ∂cos(θ + m)/∂cosθ = sin(θ + m)/sinθ, without bound at θ → 0, where dcosθ/dx vanishes as fast: sinθ is taken
from cosθ, and where that is ±1 its derivative is 0. `gradient="detached"` is what public codes train that edit the
logits under no-grad: the published value with the derivative of r cosθ.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

PerExample = Float[Array, " b"]
Step = Num[Array, ""] | int


def sine(cos: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """sinθ ≥ 0 from cosθ; where that is ±1 it is 0, and so is its derivative."""
    square = (1.0 - cos) * (1.0 + cos)
    inside = square > 0.0
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1.0)), 0.0)


def cosine_of_multiple(cos: Float[Array, "*s"], m: int) -> Float[Array, "*s"]:
    """cos(mθ), Chebyshev's polynomial of cosθ: its derivative is finite everywhere."""
    before, now = jnp.ones_like(cos), cos
    for _ in range(m - 1):
        before, now = now, 2.0 * cos * now - before
    return now


def psi(cos: Float[Array, "*s"], m: int) -> Float[Array, "*s"]:
    """ψ of (1): cosθ for m = 1, and falling over all of [0, π] for every m."""
    # At kπ/m both pieces meet with slope 0, so that which of them is taken there does not matter.
    k = sum((jnp.where(cos <= np.cos(j * np.pi / m), 1.0, 0.0) for j in range(1, m)), jnp.zeros_like(cos))
    return (1.0 - 2.0 * (k % 2.0)) * cosine_of_multiple(cos, m) - 2.0 * k


def turned(cos: Float[Array, "*s"], m: Float[Array, "*#s"] | float) -> Float[Array, "*s"]:
    """cos(θ + m)."""
    return cos * jnp.cos(m) - sine(cos) * jnp.sin(m)


def least_scale(classes: int, probability: float) -> float:
    """The s below which no embedding can be given its class with this probability: 1801.09414 eq. 6."""
    return (classes - 1) / classes * float(np.log((classes - 1) * probability / (1.0 - probability)))


@dataclass(frozen=True, kw_only=True)
class Margin(ABC):
    """Base. What is in front of cosθ, and the target's logit."""

    UNIT_FEATURES: ClassVar[bool] = True  # logits are s·cosθ, not ‖x‖·…
    UNIT_WEIGHTS: ClassVar[bool] = True  # directions of classes are taken at unit length

    scale: float = 64.0  # s
    gradient: Literal["exact", "detached"] = "exact"  # of the logit that is shown, or of the one without margin
    warmup: int = 0  # steps in which the margin rises from none, in proportion

    def __post_init__(self) -> None:
        if self.scale <= 0.0 or self.warmup < 0:
            raise ValueError(f"scale={self.scale} must be above 0 and warmup={self.warmup} at least 0")

    def _hold(self, **needed: tuple[bool, str]) -> None:
        """Raises a ValueError that names the fields that are not as they have to be, and how that is."""
        wrong = [f"{name}={getattr(self, name)} must be {how}" for name, (holds, how) in needed.items() if not holds]
        if wrong:
            raise ValueError(f"{type(self).__name__}: {', '.join(wrong)}")

    def plain(self, cos: PerExample, norm: PerExample) -> PerExample:
        """The logit without margin: what every other class has."""
        return self.scale * cos if self.UNIT_FEATURES else norm * cos

    @abstractmethod
    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        """The target's logit.

        Args:
          cos: cosθ, in float32 or better.
          norm: r, which is ‖x‖ where w is taken at unit length.
          label: each example's class, for margins that differ from class to class.
          step: steps already taken, for those that grow.
        """

    def shift(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        """What is added to the plain logit; its derivative as `gradient` says."""
        moved = self.target(cos, norm, label, step) - self.plain(cos, norm)
        return moved if self.gradient == "exact" else jax.lax.stop_gradient(moved)

    def other(self, logit: Float[Array, "b c"]) -> Float[Array, "b c"]:
        """What another class's plain logit becomes."""
        return logit

    def extra(self, norm: PerExample) -> PerExample:
        """What is added to an example's loss on account of ‖x‖."""
        return jnp.zeros_like(norm)

    def risen(self, step: Step) -> Float[Array, ""]:
        """The part of the margin that holds at a step."""
        return jnp.clip(jnp.asarray(step, jnp.float32) / self.warmup, 0.0, 1.0) if self.warmup else jnp.ones(())


@dataclass(frozen=True, kw_only=True)
class Softmax(Margin):
    """(0): no margin, nothing normalised. `scale` is not used."""

    UNIT_FEATURES = False
    UNIT_WEIGHTS = False

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        return self.plain(cos, norm)


@dataclass(frozen=True, kw_only=True)
class _Multiplied(Margin):
    """(1) and (2): r·ψ(θ), annealed. `scale` and `warmup` are not used."""

    NAME: ClassVar[str] = ""  # not to be chosen
    UNIT_FEATURES = False

    m: int = 4
    start: float = 1000.0  # λ₀
    decay: float = 0.12  # γ, a step
    least: float = 5.0  # λ_min; without end at 5, the mean of five parts cosθ and one part ψ

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m < 1 or min(self.start, self.decay, self.least) < 0.0:
            raise ValueError(f"m={self.m} must be at least 1; start, decay and least at least 0")

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        part = jnp.maximum(self.least, self.start / (1.0 + self.decay * jnp.asarray(step, jnp.float32)))
        return norm * (part * cos + psi(cos, self.m)) / (1.0 + part)


@dataclass(frozen=True, kw_only=True)
class LSoftmax(_Multiplied):
    """(1)."""

    UNIT_WEIGHTS = False

    m: int = 2
    least: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ASoftmax(_Multiplied):
    """(2), SphereFace's."""


@dataclass(frozen=True, kw_only=True)
class NormFace(Margin):
    """(3): no margin."""

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        return self.plain(cos, norm)


@dataclass(frozen=True, kw_only=True)
class CosFace(Margin):
    """(4), AM-Softmax too."""

    m: float = 0.35

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(m=(0.0 <= self.m < 2.0, "in [0, 2)"))

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        return self.scale * (cos - self.risen(step) * self.m)


Beyond = Literal["hard", "easy", "exact"]  # what is past the angle at which cos(θ + m) would rise


def _arc(cos: PerExample, m: Float[Array, "*#b"], beyond: Beyond) -> PerExample:
    moved = turned(cos, m)
    if beyond == "easy":
        return jnp.where(cos > 0.0, moved, cos)
    return jnp.where(cos > -jnp.cos(m), moved, cos - m * jnp.sin(m)) if beyond == "hard" else moved


@dataclass(frozen=True, kw_only=True)
class ArcFace(Margin):
    """(5)."""

    m: float = 0.5  # radians
    beyond: Beyond = "hard"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(m=(0.0 <= self.m < np.pi, "in [0, π), radians"))

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        return self.scale * _arc(cos, self.risen(step) * self.m, self.beyond)


@dataclass(frozen=True, kw_only=True)
class CombinedMargin(Margin):
    """(6)."""

    m1: float = 1.0
    m2: float = 0.3  # radians
    m3: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(
            m1=(self.m1 >= 0.0, "at least 0"),
            m2=(0.0 <= self.m2 < np.pi, "in [0, π), radians"),
            m3=(0.0 <= self.m3 < 2.0, "in [0, 2)"),
        )

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        part = self.risen(step)
        m1, m2, m3 = 1.0 + part * (self.m1 - 1.0), part * self.m2, part * self.m3
        phi = m1 * jnp.arctan2(sine(cos), cos) + m2
        k = jnp.floor(jax.lax.stop_gradient(phi) / np.pi)
        return self.scale * ((1.0 - 2.0 * (k % 2.0)) * jnp.cos(phi) - 2.0 * k - m3)


@dataclass(frozen=True, kw_only=True)
class AdaFace(Margin):
    """(7). μ and σ are the batch's own, not an average over batches."""

    m: float = 0.4
    h: float = 0.333

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(m=(0.0 <= self.m < 0.5 * np.pi, "in [0, π/2), radians"), h=(self.h > 0.0, "above 0"))

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        norm = jax.lax.stop_gradient(norm)
        z = jnp.clip(self.h * (norm - jnp.mean(norm)) / (jnp.std(norm) + 1e-3), -1.0, 1.0)
        m = self.risen(step) * self.m
        by = -m * z
        # θ − mẑ is kept in [0, π], at whose ends the cosine is ±1.
        inside = jnp.where((by < 0.0) & (cos > jnp.cos(by)), 1.0, turned(cos, by))
        inside = jnp.where((by > 0.0) & (cos < -jnp.cos(by)), -1.0, inside)
        return self.scale * (inside - m * z - m)


@dataclass(frozen=True, kw_only=True)
class MagFace(Margin):
    """(8)."""

    low: float = 10.0  # the norms between which the margin grows
    high: float = 110.0
    m_low: float = 0.45  # radians
    m_high: float = 0.8
    weight: float = 35.0  # λ_g

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(
            low=(0.0 < self.low < self.high, f"above 0 and below high={self.high}"),
            m_low=(0.0 <= self.m_low <= self.m_high, f"at least 0 and at most m_high={self.m_high}"),
            m_high=(self.m_high < np.pi, "below π, radians"),
        )

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        a = jnp.clip(norm, self.low, self.high)
        m = self.m_low + (self.m_high - self.m_low) * (a - self.low) / (self.high - self.low)
        return self.scale * _arc(cos, self.risen(step) * m, "hard")

    def extra(self, norm: PerExample) -> PerExample:
        a = jnp.clip(norm, self.low, self.high)
        return self.weight * (1.0 / a + a / self.high**2)


@dataclass(frozen=True, kw_only=True)
class BinaryMargin(Margin):
    """Base of what is no softmax, but a sum over classes of logistic losses, each with a bias, as (9) weighs them."""

    NAME: ClassVar[str] = ""  # not to be chosen

    balance: float = 0.7  # λ, of the target's loss

    def __post_init__(self) -> None:
        super().__post_init__()
        # The margin is on both sides, of which the others' is the same at every step.
        self._hold(balance=(0.0 < self.balance < 1.0, "between 0 and 1"), warmup=(self.warmup == 0, "0"))

    @abstractmethod
    def first_bias(self, classes: int) -> float:
        """What every logit begins with, before the model has learnt a bias beside it."""


@dataclass(frozen=True, kw_only=True)
class SphereFace2(BinaryMargin):
    """(9). b is b₀(K) of 2108.01513 app. A (all losses in balance at the start) and what the model learns beside it."""

    scale: float = 40.0
    m: float = 0.4
    t: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(t=(self.t > 0.0, "above 0"), m=(self.m >= 0.0, "at least 0"))

    def _g(self, cos: Float[Array, "*s"]) -> Float[Array, "*s"]:
        # Rounding may take a cosine below −1, where a power has no derivative.
        return 2.0 * (0.5 * (jnp.clip(cos, -1.0, 1.0) + 1.0)) ** self.t - 1.0

    def target(self, cos: PerExample, norm: PerExample, label: Int[Array, " b"], step: Step) -> PerExample:
        return self.scale * (self._g(cos) - self.m)

    def other(self, logit: Float[Array, "b c"]) -> Float[Array, "b c"]:
        return self.scale * (self._g(logit / self.scale) + self.m)

    def first_bias(self, classes: int) -> float:
        """b₀: the b of least loss where every cosine is 0."""
        start = 2.0 * 0.5**self.t - 1.0  # g(0)
        positive, negative = self.scale * (start - self.m), self.scale * (start + self.m)
        # With y = e^b the derivative is 0 where e^p·y² + (1 − z)·y − z·e^(−n) = 0, z = λ/((1 − λ)(K − 1)).
        z = self.balance / ((1.0 - self.balance) * (classes - 1))
        root = np.sqrt((1.0 - z) ** 2 + 4.0 * z * np.exp(positive - negative))
        if z < 1.0:  # of the two equal forms the one in which nothing cancels
            return float(np.log(2.0 * z / (1.0 - z + root)) - negative)
        return float(np.log(0.5 * (z - 1.0 + root)) - positive)
