"""Labelled images in folders: a folder for each class, and in it the class's images.

    path/class/image.png        the classes are numbered in the order of their names, from 0

Held out is a second such folder, or a random part of the first: some images of every class, or some classes whole.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8

from data.arrays import ArraySource
from data.dataset import Arrays, Dataset, MalformedDataError, MissingDataError, Source, is_test
from data.images import IN_MEMORY
from data.pixels import decode, to_model_space, to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, hidden ones left out, in the order of their names; none where there is no folder."""
    if not folder.is_dir():
        return ()
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return tuple(sorted(files, key=lambda file: file.name))


def read_image(file: str | Path, size: int, channels: int) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """The largest centred square of an image, as size × size pixels.

    Raises:
      MalformedDataError: it is no image, or only a part of one.
    """
    try:
        pixels = decode(Path(file).read_bytes(), channels, size)
    except Exception as error:  # Pillow raises many kinds
        raise MalformedDataError(f"{file} is no image that can be read: {error}") from error
    return pixels if pixels.dtype == np.uint8 else to_uint8(to_model_space(pixels))  # 16-bit files among 8-bit ones


def read_all(files: Sequence[str | Path], size: int, channels: int) -> UInt8[np.ndarray, "n {size} {size} {channels}"]:
    """Many of them."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        return np.stack(list(pool.map(lambda file: read_image(file, size, channels), files)))


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


Classes = dict[str, tuple[str, ...]]  # the files of each, in the order of their names


@dataclass(frozen=True)
class Split:
    """What one of the splits is made of."""

    names: tuple[str, ...]  # of its classes
    files: tuple[str, ...]
    label: Int[np.ndarray, " n"]


def _classes(path: str) -> Classes:
    folder = Path(path)
    if not folder.is_dir():
        raise MissingDataError(f"there is no folder {path!r}")
    inner = sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not inner:
        raise MalformedDataError(f"{path} holds no folders; each class is a folder of images in it")
    found = {name: tuple(map(str, images_in(folder / name))) for name in inner}
    empty = next((name for name, files in found.items() if not files), None)
    if empty is not None:
        raise MalformedDataError(f"the class folder {folder / empty} has no image: none of {', '.join(SUFFIXES)}")
    return found


def _at_least_two(path: str, found: Classes) -> None:
    if len(found) < 2:
        raise MalformedDataError(f"{path} has only the class {next(iter(found))!r}; two are needed to tell apart")


def _two_folders(data: "ImageFolder", train: Classes) -> tuple[Classes, Classes]:
    """Training and test, where the test split has a folder of its own."""
    test = _classes(data.test)
    strange = next((name for name in test if name not in train), None)
    if strange is not None and not data.open_set:
        raise MalformedDataError(
            f"{data.test} has the class {strange!r}, which {data.path} does not have; new classes need open_set=True"
        )
    if data.open_set:
        _at_least_two(data.test, test)
    return train, test


def _whole(data: "ImageFolder", found: Classes, rng: np.random.RandomState) -> tuple[Classes, Classes]:
    """Training and test, of different classes."""
    held = max(2, round(data.held_out * len(found)))
    if len(found) < held + 2:
        raise MalformedDataError(
            f"{data.path} has {len(found)} classes; with {held} of them held out, fewer than two are left to train on"
        )
    chosen = set(rng.permutation(len(found))[:held].tolist())
    train, test = ({n: found[n] for i, n in enumerate(found) if (i in chosen) == out} for out in (False, True))
    return train, test


def _parts(data: "ImageFolder", found: Classes, rng: np.random.RandomState) -> tuple[Classes, Classes]:
    """Training and test, of the same classes. A class's only image is trained on."""
    train, test = {}, {}
    for name, files in found.items():
        held = min(max(1, round(data.held_out * len(files))), len(files) - 1)
        chosen = set(rng.permutation(len(files))[:held].tolist())
        train[name], test[name] = (
            tuple(file for i, file in enumerate(files) if (i in chosen) == out) for out in (False, True)
        )
    if not any(test.values()):
        raise MalformedDataError(f"no class of {data.path} has two images, one to train on and one to hold out")
    return train, test


@lru_cache(maxsize=8)
def _splits(data: "ImageFolder") -> tuple[Split, Split]:
    # RandomState's streams are frozen for ever, so the split is the same under every NumPy.
    rng = np.random.RandomState(0)
    found = _classes(data.path)
    _at_least_two(data.path, found)
    if data.test:
        train, test = _two_folders(data, found)
    else:
        train, test = (_whole if data.open_set else _parts)(data, found, rng)
    return _split(train, tuple(train), rng), _split(test, tuple(test if data.open_set else train), rng)


def _split(classes: Classes, names: tuple[str, ...], rng: np.random.RandomState) -> Split:
    """In a random order, so that the first so many records are of all classes."""
    number = {name: i for i, name in enumerate(names)}
    files = [(file, number[name]) for name, own in classes.items() for file in own]
    files = [files[i] for i in rng.permutation(len(files))]
    return Split(names, tuple(file for file, _ in files), np.asarray([label for _, label in files]))


@lru_cache(maxsize=4)
def _source(data: "ImageFolder", test: bool) -> Source:
    split = _splits(data)[test]
    flip = data.flip and not test
    if len(split.files) * data.size**2 * data.channels > IN_MEMORY:
        return FileSource(split.files, split.label, data.size, data.channels, flip)
    return ArraySource(read_all(split.files, data.size, data.channels), split.label, to_model_space, flip)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """Images [size, size, channels] in [−1, 1] of a folder with a folder of them for each class."""

    path: str  # the folder; that of a class is in it and has the class's name
    test: str = ""  # a second such folder, which is held out; empty: a part of the first is
    held_out: float = 0.1  # fraction in the test split, where that has no folder of its own
    # The test split has classes of its own, numbered from 0: classes are held out whole.
    open_set: bool = False  # pyright: ignore[reportIncompatibleMethodOverride]
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
    def class_names(self) -> tuple[str, ...]:
        """Of the training split, in the order of their labels."""
        return _splits(self)[0].names

    @property
    def num_classes(self) -> int:
        """Of the training split."""
        return len(self.class_names)

    @property
    def bin_width(self) -> float:
        """8 bits, whatever depth the files have."""
        return 2.0 / 255.0

    def source(self, split: str) -> Source:
        return _source(self, is_test(split))
