"""Unlabelled images: all that lie in a folder, and in the folders within it.

    path/anything.png, path/trip/anything.jpg, …

Held out is a second such folder, or a random part of the first. `data/folders.py` reads a folder for each class.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data.dataset import MalformedDataError, MissingDataError, Source, is_test
from data.files import SUFFIXES, ImageFiles, images_in, scattered


def _files(path: str) -> tuple[str, ...]:
    folder = Path(path)
    if not folder.is_dir():
        raise MissingDataError(f"there is no folder {path!r}" + ", which is a file" * folder.is_file())
    hidden = lambda place: any(part.startswith(".") for part in place.relative_to(folder).parts)  # noqa: E731
    inner = sorted(place for place in folder.rglob("*") if place.is_dir() and not hidden(place))
    found = [file.relative_to(folder).as_posix() for place in (folder, *inner) for file in images_in(place)]
    if len(found) < 2:
        raise MalformedDataError(
            f"{path} holds {len(found)} images ({', '.join(SUFFIXES)}); two at least, one of them to hold out"
        )
    return tuple(str(folder / name) for name in scattered(found))


@lru_cache(maxsize=8)
def _splits(data: "Pictures") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test, in an order such that the first so many are of all folders."""
    files = _files(data.path)
    if data.test:
        return files, _files(data.test)
    # The beginning of an order in which a new file moves no other: what is held out of a growing folder stays so.
    held = min(max(1, round(data.held_out * len(files))), len(files) - 1)
    return files[held:], files[:held]


@lru_cache(maxsize=4)
def _source(data: "Pictures", test: bool) -> Source:
    return data.source_of(_splits(data)[test], None, test)


@dataclass(frozen=True, kw_only=True)
class Pictures(ImageFiles):
    """Images [size, size, channels] in [−1, 1] of a folder, without labels."""

    size: int = 32  # cut to the centred square and resized to size × size

    def source(self, split: str) -> Source:
        return _source(self, is_test(split))
