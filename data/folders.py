"""Labelled images in folders: a folder for each class, and in it the class's images.

    path/class/image.png        the classes are numbered in the order of their names, from 0

Held out is a second such folder, or a random part of the first: some images of every class, or some classes whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data.dataset import MalformedDataError, MissingDataError, Source, is_test
from data.files import SUFFIXES, ImageFiles, images_in, scattered

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
        raise MissingDataError(f"there is no folder {path!r}" + ", which is a file" * folder.is_file())
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


def _whole(data: "ImageFolder", found: Classes) -> tuple[Classes, Classes]:
    """Training and test, of different classes."""
    held = max(2, round(data.held_out * len(found)))
    if len(found) < held + 2:
        raise MalformedDataError(
            f"{data.path} has {len(found)} classes; with {held} of them held out, fewer than two are left to train on"
        )
    chosen = scattered(found)[:held]
    train, test = ({name: found[name] for name in found if (name in chosen) == out} for out in (False, True))
    return train, test


def _parts(data: "ImageFolder", found: Classes) -> tuple[Classes, Classes]:
    """Training and test, of the same classes. A class's only image is trained on."""
    train, test = {}, {}
    for name, files in found.items():
        held = min(max(1, round(data.held_out * len(files))), len(files) - 1)
        ordered = tuple(_by_name(files))
        train[name], test[name] = ordered[held:], ordered[:held]
    if not any(test.values()):
        raise MalformedDataError(f"no class of {data.path} has two images, one to train on and one to hold out")
    return train, test


@lru_cache(maxsize=8)
def _splits(data: "ImageFolder") -> tuple[Split, Split]:
    found = _classes(data.path)
    _at_least_two(data.path, found)
    if data.test:
        train, test = _two_folders(data, found)
    else:
        train, test = (_whole if data.open_set else _parts)(data, found)
    return _split(train, tuple(train)), _split(test, tuple(test if data.open_set else train))


def _split(classes: Classes, names: tuple[str, ...]) -> Split:
    """In an order such that the first so many records are of all classes."""
    number = {name: i for i, name in enumerate(names)}
    label = {file: number[name] for name, own in classes.items() for file in own}
    files = _by_name(label)
    return Split(names, tuple(files), np.asarray([label[file] for file in files]))


def _by_name(files: Iterable[str]) -> list[str]:
    """Scattered by the names of their class and their own: a new file moves no other, a moved folder none."""
    named = {"/".join(Path(file).parts[-2:]): file for file in files}
    return [named[name] for name in scattered(named)]


@lru_cache(maxsize=4)
def _source(data: "ImageFolder", test: bool) -> Source:
    split = _splits(data)[test]
    return data.source_of(split.files, split.label, test)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageFiles):
    """Images [size, size, channels] in [−1, 1] of a folder with a folder of them for each class, named as it is."""

    # The test split has classes of its own, numbered from 0: classes are held out whole.
    open_set: bool = False  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the training split, in the order of their labels."""
        return _splits(self)[0].names

    @property
    def num_classes(self) -> int:
        """Of the training split."""
        return len(self.class_names)

    def source(self, split: str) -> Source:
        return _source(self, is_test(split))
