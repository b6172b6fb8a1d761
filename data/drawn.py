"""Examples that are drawn and not read: an endless supply, the same for all who ask for it.

    (1)  example n of a run is row n mod B of block ⌊n/B⌋, and the block is drawn by Philox(seed + 1, ⌊n/B⌋)

The test split is another stream, whatever the run's seed.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from data.dataset import Arrays, Source

BLOCK = 1024  # B: a generator made for each example would cost more than its numbers
TEST = 2**62  # past any seed


@runtime_checkable
class Drawn(Protocol):
    """What can be drawn without end; hashable, its blocks being kept."""

    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        """n examples."""
        ...


@lru_cache(maxsize=8)
def _block(drawn: Drawn, stream: int, index: int) -> Arrays:
    return drawn.draw(np.random.Generator(np.random.Philox(key=[stream, index])), BLOCK)


@dataclass(frozen=True)
class DrawnSource(Source):
    """An endless supply; an epoch is nominal."""

    drawn: Drawn
    test: bool

    def __len__(self) -> int:
        return 100_000

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        stream = TEST if self.test else seed + 1
        blocks = numbers // BLOCK
        parts = [(_block(self.drawn, stream, int(i)), numbers[blocks == i] % BLOCK) for i in np.unique(blocks)]
        return {name: np.concatenate([block[name][rows] for block, rows in parts]) for name in parts[0][0]}
