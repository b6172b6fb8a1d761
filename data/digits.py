"""scikit-learn's embedded digits: 1,797 real handwritten digits, 8×8, 17 grey levels. No download."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.arrays import ArraySource
from data.dataset import Dataset, Source, is_test

TEST_SIZE = 360


@lru_cache(maxsize=2)
def _split(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # RandomState's streams are frozen for ever, so the split is the same under every NumPy.
    order = np.random.RandomState(0).permutation(len(images))
    chosen = order[-TEST_SIZE:] if is_test(split) else order[:-TEST_SIZE]
    return images[chosen].reshape(-1, 8, 8, 1).astype(np.uint8), labels[chosen]


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """1,437 training and 360 test digits [8, 8, 1] in [−1, 1], labels 0 … 9."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (8, 8, 1)

    @property
    def num_classes(self) -> int:
        return 10

    @property
    def bin_width(self) -> float:
        """17 grey levels, 0 … 16."""
        return 2.0 / 16.0

    def source(self, split: str) -> Source:
        images, labels = _split(split)
        return ArraySource(images, labels, lambda levels: levels.astype(np.float32) / np.float32(8.0) - 1.0)
