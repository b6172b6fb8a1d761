"""Pairs of images that are of one class or of two: what verification is measured on.

LFW's protocol (Huang et al. 2007, report 07-49, view 2): ten folds of different people, in each fold as many pairs of
one person as of two. `read_pairs` reads such a list; `drawn_pairs` makes one of labelled images.

    (1)  pair r of a class's images 0 … n − 1:     (r − j(j − 1)/2, j),  j = ⌊(1 + √(1 + 8r))/2⌋,  r < n(n − 1)/2
    (2)  pairs of two classes, the fold's images in the order of their classes:  each with all that come after its class

Pairs are drawn by their number in such a list, which is never made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from data import units
from data.dataset import MalformedDataError, MissingDataError
from data.files import SUFFIXES, images_in, read_all
from data.pixels import to_model_space


@dataclass(frozen=True)
class Pairs:
    """Indices into a list of images."""

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    same: Bool[np.ndarray, " n"]  # whether the two are of one class
    fold: Int[np.ndarray, " n"]  # from 0


def drawn_pairs(labels: Int[np.ndarray, " n"], folds: int = 10, per_fold: int = 600, seed: int = 0) -> Pairs:
    """Pairs of labelled images: no class in two folds, in each fold as many pairs of one class as of two.

    Args:
      labels: of all images.
      per_fold: pairs in a fold, all different; fewer where there are not so many.
      seed: decides which classes a fold has, and which pairs.

    Raises:
      ValueError: a fold would have fewer than two classes, or none with two images.
    """
    if folds < 1 or per_fold < 2:
        raise ValueError(f"folds={folds} must be at least 1, and per_fold={per_fold} at least 2")
    rng = np.random.RandomState(seed)  # whose streams are frozen for ever: the same pairs under every NumPy
    label, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    several = int((sizes > 1).sum())  # classes that have a pair
    if len(sizes) < 2 * folds or several < folds:
        raise ValueError(
            f"{folds} folds need {2 * folds} classes, {folds} of them with two images or more: there are {len(sizes)}, "
            f"{several} with two or more"
        )
    dealt = rng.permutation(len(sizes))
    dealt = dealt[np.argsort(sizes[dealt] < 2, kind="stable")]  # first those with pairs, so that each fold has some
    fold_of = np.empty_like(dealt)
    fold_of[dealt] = np.arange(len(dealt)) % folds
    order = np.argsort(label, kind="stable")
    fold_of_image = fold_of[label[order]]
    parts = []
    for fold in range(folds):
        images = order[fold_of_image == fold]
        same, different = _of_fold(rng, label[images], per_fold // 2)
        first, second = (images[np.concatenate(side)] for side in zip(same, different, strict=True))
        half = len(same[0])
        parts.append(Pairs(first, second, np.arange(2 * half) < half, np.full(2 * half, fold)))
    return Pairs(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("first", "second", "same", "fold")))


Sides = tuple[np.ndarray, np.ndarray]


def _of_fold(rng: np.random.RandomState, label: Int[np.ndarray, " n"], half: int) -> tuple[Sides, Sides]:
    """Places in a fold of `half` pairs of one class, and of as many of two; `label` is sorted."""
    start, sizes = np.unique(label, return_index=True, return_counts=True)[1:]
    ends = np.cumsum(sizes * (sizes - 1) // 2)  # of the classes' pairs (1), one class after the other
    later = np.repeat(len(label) - start - sizes, sizes)  # images after each image's class
    other_ends = np.cumsum(later)  # of the pairs (2)
    half = int(min(half, ends[-1], other_ends[-1]))

    number = _distinct(rng, int(ends[-1]), half)
    c = np.searchsorted(ends, number, side="right")
    r = number - (ends - sizes * (sizes - 1) // 2)[c]
    j = ((1.0 + np.sqrt(1.0 + 8.0 * r)) / 2.0).astype(np.int64)
    same = (start[c] + r - j * (j - 1) // 2, start[c] + j)

    number = _distinct(rng, int(other_ends[-1]), half)
    first = np.searchsorted(other_ends, number, side="right")
    second = len(label) - later[first] + number - (other_ends - later)[first]
    return same, (first, second)


def _distinct(rng: np.random.RandomState, size: int, n: int) -> Int[np.ndarray, "{n}"]:
    """n different ones of 0 … size − 1, every choice of them as likely (Floyd), sorted."""
    chosen: set[int] = set()
    last = np.arange(size - n, size, dtype=np.int64)
    for drawn, own in zip(rng.randint(0, last + 1, dtype=np.int64).tolist(), last.tolist(), strict=True):
        chosen.add(own if drawn in chosen else drawn)
    return np.asarray(sorted(chosen), np.int64)


def read_pairs(path: str | Path, folder: str | Path) -> tuple[tuple[Path, ...], Pairs]:
    """A list as LFW's pairs.txt, and the files that it names.

    The first line is `folds n`, or `n` of one fold. Then come, for each fold, n lines `name i j` of one class, and n
    lines `name i name j` of two. Image i of a name is folder/name/name_000i, with a suffix of data/files.py.

    Raises:
      MissingDataError: there is no such list or folder, or an image is not in it; names its line.
      MalformedDataError: a line is no pair, or there are not as many as the first line says.
    """
    if not Path(path).is_file():
        raise MissingDataError(f"there is no list of pairs {str(path)!r}")
    if not Path(folder).is_dir():
        raise MissingDataError(f"there is no folder {str(folder)!r}")
    lines = [(i, line.strip()) for i, line in enumerate(units.read_lines(str(path), "characters"), 1) if line.strip()]
    folds, n = _header(path, *(lines[0] if lines else (1, "")))
    rows = [(i, line, _pair(path, i, line)) for i, line in lines[1:]]
    if len(rows) != 2 * n * folds:
        raise MalformedDataError(
            f"{path} has {len(rows)} pairs; its first line announces {folds} folds of {n} of one class and {n} of two"
        )
    images = _Images(Path(folder))
    first, second, same = [], [], []
    for place, (i, line, pair) in enumerate(rows):
        name, one, other, two = pair
        same.append(place % (2 * n) < n)
        if same[-1] != (name == other):
            expected = "name i j, of one class" if same[-1] else "name i name j, of two classes"
            raise MalformedDataError(f"{path}, line {i}: {line!r} stands where a pair is {expected}")
        first.append(images.index(path, i, name, one))
        second.append(images.index(path, i, other, two))
    fold = np.arange(len(rows)) // (2 * n)
    return tuple(images.number), Pairs(np.asarray(first), np.asarray(second), np.asarray(same), fold)


def _header(path: str | Path, i: int, line: str) -> tuple[int, int]:
    numbers = line.split()
    if len(numbers) not in (1, 2) or not all(number.isdecimal() and int(number) for number in numbers):
        raise MalformedDataError(
            f"{path}, line {i}: {line!r} is neither the number of folds and of pairs nor that of pairs alone"
        )
    return (1, int(numbers[0])) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def _pair(path: str | Path, i: int, line: str) -> tuple[str, int, str, int]:
    words = line.split("\t") if "\t" in line else line.split()  # a name may have blanks where there are tabs
    if len(words) == 3:
        words = [words[0], words[1], words[0], words[2]]
    if len(words) != 4 or not (words[1].isdecimal() and words[3].isdecimal()):
        raise MalformedDataError(f"{path}, line {i}: {line!r} is neither name i j nor name i name j")
    return words[0], int(words[1]), words[2], int(words[3])


class _Images:
    """The files that were asked for, in the order of the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of_name: dict[str, dict[str, Path]] = {}
        self.number: dict[Path, int] = {}

    def index(self, path: str | Path, i: int, name: str, image: int) -> int:
        if name not in self.of_name:
            self.of_name[name] = {file.stem: file for file in images_in(self.folder / name)}
        stem = f"{name}_{image:04d}"
        file = self.of_name[name].get(stem)
        if file is None:
            wanted = self.folder / name / stem
            raise MissingDataError(f"{path}, line {i}: there is no image {wanted} with any of {', '.join(SUFFIXES)}")
        return self.number.setdefault(file, len(self.number))


def read_images(files: Sequence[Path], shape: tuple[int, ...]) -> Float[np.ndarray, "n h w c"]:
    """Image files as examples of that shape in [−1, 1]: the largest centred square, resized.

    Raises:
      ValueError: the shape is not that of square images, grey or of three colours.
      MalformedDataError: a file is no image.
    """
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
        raise ValueError(f"images are read as squares of 1 or 3 channels, not as {shape}")
    return to_model_space(read_all(files, shape[0], shape[2]))
