"""Any labelled set with its training examples in runs of one class: what triplets and contrastive pairs are made of.

    (1)  example n is member j = n mod E of group g = ⌊n/E⌋                         E examples of a class in a run
    (2)  group g is of class π_e(g mod C), e = ⌊g/C⌋, π_e the permutation of Philox(seed, e)
    (3)  its members are the first E of a random order of the class's images, drawn by Philox(seed, g); those of a
         class of fewer than E are gone through again

C counts the classes that have an image. So a batch of B examples, B a multiple of E, holds B/E whole runs, of different
classes where B/E divides C, and each class has one run in C groups. A group is a pure function of (seed, g).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from data.dataset import Arrays, Dataset, Source, is_test, permutation
from data.digits import Digits
from data.drawn import DrawnSource

CHUNK = 1024  # records whose labels are read at once


@dataclass(frozen=True)
class Members:
    """The records of each class: those of class c are order[start[c] : start[c + 1]]."""

    order: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " starts"]

    @property
    def classes(self) -> int:
        return len(self.start) - 1


def _labels(source: Source) -> np.ndarray:
    if source.labels is not None:
        return source.labels
    rows = [np.arange(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK)]
    with ThreadPoolExecutor(source.threads or 1) as pool:
        return np.concatenate(list(pool.map(lambda some: source.read(some, -1, some)["label"], rows)))


@lru_cache(maxsize=4)
def _members(data: Dataset) -> Members:
    label = _labels(data.source("train"))
    sizes = np.unique(label, return_counts=True)[1]
    return Members(np.argsort(label, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))


@dataclass(frozen=True)
class GroupedSource(Source):
    """Another set's training records. Which of them are read is (1) to (3), whatever is asked for."""

    source: Source
    members: Members
    each: int

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        return self.source.labels

    @property
    def threads(self) -> int:
        return self.source.threads

    def __len__(self) -> int:
        return len(self.source)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        if seed < 0:  # for metrics and pictures: the records as they are
            return self.source.read(records, seed, numbers)
        groups, group = np.unique(numbers // self.each, return_inverse=True)
        chosen = np.stack([self._group(seed, int(g)) for g in groups])
        return self.source.read(chosen[group, numbers % self.each], seed, numbers)

    def _group(self, seed: int, g: int) -> Int[np.ndarray, "{self.each}"]:
        epoch, place = divmod(g, self.members.classes)
        c = permutation(seed, epoch, self.members.classes)[place]
        own = self.members.order[self.members.start[c] : self.members.start[c + 1]]
        # The counter keeps these numbers apart from those that the permutations of (2) are made of.
        rng = np.random.Generator(np.random.Philox(key=[seed, g], counter=[0, 0, 0, 1]))
        return np.resize(rng.choice(own, min(self.each, len(own)), replace=False), self.each)


@dataclass(frozen=True, kw_only=True)
class Grouped(Dataset):
    """Another set, `each` training examples of a class one after the other; the test split is as it was."""

    data: Dataset = field(default_factory=Digits)
    each: int = 4  # E; the batch size is a multiple of it

    def __post_init__(self) -> None:
        if self.each < 1:
            raise ValueError(f"each={self.each} is not positive")

    def check_batch_size(self, size: int) -> None:
        if size % self.each:
            raise ValueError(
                f"batch_size={size} must be a multiple of each={self.each}, the examples of a class in a run"
            )

    def source(self, split: str) -> Source:
        source = self.data.source(split)
        if is_test(split):
            return source
        name = type(self.data).__name__
        if not self.data.num_classes:
            raise ValueError(f"examples are grouped by their labels, and {name} has none")
        if isinstance(source, DrawnSource):
            raise ValueError(f"{name} is drawn without end: it has no records to choose from by their labels")
        return GroupedSource(source, _members(self.data), self.each)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def bin_width(self) -> float | None:
        return self.data.bin_width

    @property
    def vocabulary(self) -> int:
        return self.data.vocabulary

    @property
    def grid(self) -> tuple[int, int] | None:
        return self.data.grid

    @property
    def prompt_length(self) -> int:
        return self.data.prompt_length

    @property
    def stop(self) -> int | None:
        return self.data.stop

    @property
    def open_set(self) -> bool:
        """Whether the test split has classes of its own."""
        return self.data.open_set

    @property
    def runs(self) -> tuple[str, ...]:
        return self.data.runs

    @property
    def made_by(self) -> str:
        return self.data.made_by

    @property
    def pictured(self) -> Dataset:
        return self.data.pictured

    def zeros(self, size: int) -> Arrays:
        return self.data.zeros(size)

    def prepare(self) -> None:
        self.data.prepare()

    def pinned(self) -> "Grouped":
        return replace(self, data=self.data.pinned())

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        return self.data.encode(text)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        return self.data.decode(tokens)

    def condition(self, n: int, first: int = 0) -> Arrays:
        return self.data.condition(n, first)

    def prompted(self, text: str) -> Arrays:
        return self.data.prompted(text)

    def shown(self, x: Any) -> Any:
        return self.data.shown(x)
