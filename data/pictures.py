"""Unlabelled images: all that lie in a folder, and in the folders within it.

    path/anything.png, path/trip/anything.jpg, …

Held out is a second such folder, or a random part of the first. `data/folders.py` reads a folder for each class.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from data.arrays import ArraySource
from data.dataset import Dataset, MalformedDataError, MissingDataError, Source, is_test
from data.folders import SUFFIXES, FileSource, images_in, read_all
from data.images import IN_MEMORY
from data.pixels import to_model_space


def _files(path: str) -> tuple[str, ...]:
    folder = Path(path)
    if not folder.is_dir():
        raise MissingDataError(f"there is no folder {path!r}")
    hidden = lambda place: any(part.startswith(".") for part in place.relative_to(folder).parts)  # noqa: E731
    inner = sorted(place for place in folder.rglob("*") if place.is_dir() and not hidden(place))
    found = tuple(str(file) for place in (folder, *inner) for file in images_in(place))
    if len(found) < 2:
        raise MalformedDataError(
            f"{path} holds {len(found)} images ({', '.join(SUFFIXES)}); two at least, one of them to hold out"
        )
    return found


@lru_cache(maxsize=8)
def _splits(data: "Pictures") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test, in a random order, so that the first so many are of all folders."""
    # RandomState's streams are frozen for ever, so the split is the same under every NumPy.
    rng = np.random.RandomState(0)
    shuffled = lambda files: tuple(files[i] for i in rng.permutation(len(files)))  # noqa: E731
    files = shuffled(_files(data.path))
    if data.test:
        return files, shuffled(_files(data.test))
    held = min(max(1, round(data.held_out * len(files))), len(files) - 1)
    return files[held:], files[:held]


@lru_cache(maxsize=4)
def _source(data: "Pictures", test: bool) -> Source:
    files, flip = _splits(data)[test], data.flip and not test
    if len(files) * data.size**2 * data.channels > IN_MEMORY:
        return FileSource(files, None, data.size, data.channels, flip)
    return ArraySource(read_all(files, data.size, data.channels), None, to_model_space, flip)


@dataclass(frozen=True, kw_only=True)
class Pictures(Dataset):
    """Images [size, size, channels] in [−1, 1] of a folder, without labels."""

    path: str
    test: str = ""  # a second such folder, which is held out; empty: a part of the first is
    held_out: float = 0.1  # fraction in the test split, where that has no folder of its own
    size: int = 32  # cut to the centred square and resized to size × size
    channels: Literal[1, 3] = 3  # grey, or red, green and blue
    flip: bool = False  # mirror half of the training images

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out={self.held_out} is not between 0 and 1")
        if self.size < 1:
            raise ValueError(f"size={self.size} is not positive")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, self.channels)

    @property
    def bin_width(self) -> float:
        """8 bits, whatever depth the files have."""
        return 2.0 / 255.0

    def source(self, split: str) -> Source:
        return _source(self, is_test(split))
