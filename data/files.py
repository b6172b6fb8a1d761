"""Image files: which they are, how one is read, and what data sets of them share."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import UnidentifiedImageError

from data.arrays import ArraySource
from data.dataset import Arrays, Dataset, MalformedDataError, Source
from data.images import IN_MEMORY
from data.pixels import decode, to_model_space, to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
NAMED = 5  # files that cannot be read, in an error's message


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, hidden ones left out, in the order of their names; none where there is no folder."""
    if not folder.is_dir():
        return ()
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return tuple(sorted(files, key=lambda file: file.name))


def scattered(names: Iterable[str]) -> list[str]:
    """In an order that looks random, and in which two names stand as they do whatever others there are."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())


def read_image(file: str | Path, size: int, channels: int) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """The largest centred square of an image, as size × size pixels.

    Raises:
      MalformedDataError: it is no image, or only a part of one.
    """
    try:
        pixels = decode(Path(file).read_bytes(), channels, size)
    except Exception as error:  # Pillow raises many kinds
        why = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)
        raise MalformedDataError(f"{file} is no image that can be read: {why}") from error
    return pixels if pixels.dtype == np.uint8 else to_uint8(to_model_space(pixels))  # 16-bit files among 8-bit ones


def read_all(files: Sequence[str | Path], size: int, channels: int) -> UInt8[np.ndarray, "n {size} {size} {channels}"]:
    """Many of them.

    Raises:
      MalformedDataError: some are no images; names the first of them, and says how many there are.
    """

    def read(file: str | Path) -> np.ndarray | MalformedDataError:
        try:
            return read_image(file, size, channels)
        except MalformedDataError as error:
            return error

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        found = list(pool.map(read, files))
    broken = [item for item in found if isinstance(item, MalformedDataError)]
    if broken:
        more = f"\nand {len(broken) - NAMED} more of {len(files)} files" if len(broken) > NAMED else ""
        raise MalformedDataError("\n".join(map(str, broken[:NAMED])) + more) from broken[0]
    return np.stack([item for item in found if not isinstance(item, MalformedDataError)])


@dataclass(frozen=True)
class FileSource(Source):
    """Files decoded as they are read, for sets too large to hold."""

    files: tuple[str, ...]
    label: Int[np.ndarray, " n"] | None
    size: int
    channels: int
    flip: bool

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        return self.label

    @property
    def threads(self) -> int:
        return 8

    def __len__(self) -> int:
        return len(self.files)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        pixels = np.stack([read_image(self.files[i], self.size, self.channels) for i in records])
        # The same reading as of a set in memory, of these records alone.
        label = None if self.label is None else self.label[records]
        source = ArraySource(pixels, label, to_model_space, self.flip)
        return source.read(np.arange(len(records)), seed, numbers)


@dataclass(frozen=True, kw_only=True)
class ImageFiles(Dataset):
    """Base of sets of image files. x is [size, size, channels] in [−1, 1]."""

    path: str  # the folder
    test: str = ""  # a second such folder, which is held out; empty: a part of the first is
    held_out: float = 0.1  # fraction in the test split, where that has no folder of its own
    size: int  # cut to the centred square and resized to size × size
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

    def source_of(self, files: tuple[str, ...], label: Int[np.ndarray, " n"] | None, test: bool) -> Source:
        """These files, held in memory where they fit."""
        flip = self.flip and not test
        if len(files) * self.size**2 * self.channels > IN_MEMORY:
            return FileSource(files, label, self.size, self.channels, flip)
        return ArraySource(read_all(files, self.size, self.channels), label, to_model_space, flip)
