"""The contract of a data set, and the one pipeline that feeds every training run.

    (1)  batch i of a run holds the examples numbered i·B … (i+1)·B − 1 of an endless stream
    (2)  example n is record π_e(n mod N) of epoch e = ⌊n/N⌋, π_e the permutation of Philox(seed, e)

So a batch is a pure function of (seed, i): the position i is all that a checkpoint has to hold. Each process reads its
own slice of every batch, and the whole batch is the same for any number of processes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, SupportsIndex

import grain
import numpy as np
from jaxtyping import Int

Arrays = dict[str, np.ndarray]


class MissingDataError(Exception):
    """The records are not where they were looked for. The message names the command that fetches them."""


class UnknownDataError(Exception):
    """No set, or no split, of that name. The message names the nearest ones."""


class Source(ABC):
    """Random access to one split. Subclasses define `__len__` and `read`."""

    @property
    def threads(self) -> int:
        """How many threads read ahead. 0, for records in memory: an indexing operation costs less than a hand-over."""
        return 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        """A batch in model space.

        Args:
          records: which records.
          seed, numbers: identify each example in the run's endless stream, for augmentation that is a pure function.
        """


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Base of all data sets."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one example's `x`."""

    @property
    def num_classes(self) -> int:
        """Number of classes of `label`; 0 where the set has none."""
        return 0

    @property
    def bin_width(self) -> float | None:
        """Step of the lattice that the values of `x` lie on, in units of x; None where they are continuous.

        What bits/dim are counted in: 2/255 for 8-bit pixels in [−1, 1].
        """
        return None

    @abstractmethod
    def source(self, split: str) -> Source:
        """The records of `train` or `test`."""

    @property
    def runs(self) -> tuple[str, ...]:
        """Folders of the runs that the records come from; none of them may be trained over."""
        return ()

    @property
    def made_by(self) -> str:
        """A digest of what made the records; empty where they are read. A run is resumed on the same records only."""
        return ""

    def zeros(self, size: int) -> Arrays:
        """A batch of zeros shaped like those of `source("train")`: all that `eval_shape` looks at. Reads no records."""
        batch: Arrays = {"x": np.zeros((size, *self.shape), np.float32)}
        if self.num_classes:
            batch["label"] = np.zeros((size,), np.int32)
        return batch

    def prepare(self) -> None:  # noqa: B027, most records are there to be read
        """Makes the records where they are made and not read; called once before training."""

    def arrays(self, split: str, limit: int) -> Arrays:
        """The first `limit` records of a split, unaugmented, for metrics and pictures."""
        source = self.source(split)
        records = np.arange(min(limit, len(source)))
        return source.read(records, seed=-1, numbers=records)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    """π_e of (2)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


@dataclass(frozen=True)
class Batches:
    """The endless stream of one process's batches, as a grain random-access source: item i is batch i."""

    source: Source
    batch_size: int  # of all processes together
    seed: int
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size={self.batch_size} does not divide over {self.processes} processes")

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, position: SupportsIndex) -> Arrays:
        share = self.batch_size // self.processes
        first = int(position) * self.batch_size + self.process * share
        numbers = np.arange(first, first + share)
        size = len(self.source)
        epochs = numbers // size
        records = np.concatenate(
            [permutation(self.seed, int(e), size)[numbers[epochs == e] % size] for e in np.unique(epochs)]
        )
        return self.source.read(records, self.seed, numbers)


def stream(batches: Batches) -> Any:
    """A grain iterator over `batches`; its `get_state` and `set_state` hold the position."""
    threads = batches.source.threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    source: Any = batches  # grain asks for a class of its own where the two methods are enough
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
