"""Synthetic identities for very many classes: of a class nothing is kept, its prototype is computed from its number.

    (1)  p_c = g_c/‖g_c‖,  g_c[i] standard normal, a hash of (c, i): two uniforms of SplitMix64 by Box and Muller
    (2)  x = (√D p_c + σ ε)/√(1 + σ²),  ε ~ N(0, I_D),  c uniform on 0 … C − 1

So every number of x has variance 1, and two examples of one class have a cosine of about 1/(1 + σ²), those of two
classes one of about 0. SplitMix64 is Steele, Lea and Flood, OOPSLA 2014.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt64

from data.arrays import mixed
from data.dataset import Arrays, Dataset, Source, is_test
from data.drawn import DrawnSource


def splitmix64(state: UInt64[np.ndarray, "*s"]) -> UInt64[np.ndarray, "*s"]:
    """64 random bits, a pure function of the counter `state`."""
    return mixed((state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def prototypes(label: Int[np.ndarray, " b"], dimensions: int) -> Float[np.ndarray, "b {dimensions}"]:
    """p of (1) of each label, float32."""
    place = np.arange(2 * -(-dimensions // 2), dtype=np.uint64)  # two hashes make two normals
    bits = splitmix64((label.astype(np.uint64) << np.uint64(32))[:, None] + place[None])
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53  # in (0, 1]
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, ::2])), 2.0 * np.pi * uniform[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    normal = pairs.reshape(len(label), -1)[:, :dimensions]
    return (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Prototypes(Dataset):
    """Vectors [D] about their class's prototype: an endless supply, the same classes in both splits."""

    classes: int = 1_000_000  # C
    dimensions: int = 128  # D
    noise: float = 0.5  # σ, beside a prototype's numbers of mean square 1

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 2**31:
            raise ValueError(f"classes={self.classes} is not between 2 and 2^31, the most that int32 labels number")
        if self.dimensions < 2:
            raise ValueError(f"dimensions={self.dimensions} must be at least 2")
        if self.noise < 0.0:
            raise ValueError(f"noise={self.noise} is negative")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dimensions,)

    @property
    def num_classes(self) -> int:
        return self.classes

    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        """n examples, eq. (2)."""
        label = rng.integers(self.classes, size=n).astype(np.int32)
        epsilon = rng.standard_normal((n, self.dimensions), dtype=np.float32)
        x = math.sqrt(self.dimensions) * prototypes(label, self.dimensions) + self.noise * epsilon
        return {"x": x / np.float32(math.sqrt(1.0 + self.noise**2)), "label": label}

    def source(self, split: str) -> Source:
        return DrawnSource(self, is_test(split))
