"""A split held in memory: small sets are decoded once, and a batch is one indexing operation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from data.dataset import Arrays, Source


def mixed(z: UInt64[np.ndarray, "*s"]) -> UInt64[np.ndarray, "*s"]:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def flipped(seed: int, numbers: Int[np.ndarray, " b"]) -> np.ndarray:
    """Which examples of the stream are mirrored: a fair coin, a pure function of (seed, number)."""
    # One hash an example, whatever batch it is in.
    z = numbers.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    return (mixed(z) & np.uint64(1)).astype(bool)


@dataclass(frozen=True)
class ArraySource(Source):
    """Records in memory."""

    x: np.ndarray
    label: np.ndarray | None
    to_model: Callable[[np.ndarray], np.ndarray]
    mirror: bool = False

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        return self.label

    def __len__(self) -> int:
        return len(self.x)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        batch = {"x": self.to_model(self.x[records])}
        if self.mirror and seed >= 0:
            coin = flipped(seed, numbers).reshape(-1, 1, 1, 1)
            batch["x"] = np.where(coin, batch["x"][:, :, ::-1], batch["x"])
        if self.label is not None:
            batch["label"] = self.label[records].astype(np.int32)
        return batch
