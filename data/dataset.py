"""The contract of a data set, and the one pipeline that feeds every training run.

    (1)  batch i of a run holds the examples numbered i·B … (i+1)·B − 1 of an endless stream
    (2)  example n is record π_e(n mod N) of epoch e = ⌊n/N⌋, π_e the permutation of Philox(seed, e)

So a batch is a pure function of (seed, i): the position i is all that a checkpoint has to hold. Each process reads its
own rows of every batch, and the whole batch is the same for any number of processes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int

Arrays = dict[str, np.ndarray]


class MissingDataError(Exception):
    """The records are not where they were looked for. The message names the command that fetches them."""


class ReadError(Exception):
    """A batch could not be read, though its set is there. The message names the batch and the cause."""


class UnknownDataError(Exception):
    """No set, or no split, of that name. The message names the nearest ones."""


class MalformedDataError(UnknownDataError, ValueError):
    """The records are there, and are not what the set needs. The message says where, and what is allowed."""


def is_test(split: str) -> bool:
    """Whether that is the test split.

    Raises:
      UnknownDataError: nor is it the training split.
    """
    if split not in ("train", "test"):
        raise UnknownDataError(f"a data set has the splits train and test, not {split!r}")
    return split == "test"


class Source(ABC):
    """Random access to one split. Subclasses define `__len__` and `read`."""

    @property
    def threads(self) -> int:
        """How many threads read ahead. 0, for records in memory: an indexing operation costs less than a hand-over."""
        return 0

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """Every record's label, where they are known without a record being read; None where they are not."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        """A batch in model space.

        Args:
          records: which records.
          seed, numbers: identify each example in the run's endless stream, for augmentation that is a pure function.
            A seed of −1 asks for the records as they are, without augmentation.

        Returns:
          `x` [b, *shape], float32 or tokens in int32; `label` [b] in int32 where there are classes; and what else the
          set has.

        Raises:
          MalformedDataError: a record is not what the set needs.
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
    def open_set(self) -> bool:
        """Whether the test split has classes of its own, numbered from 0: its labels are none of the training's."""
        return False

    @property
    def bin_width(self) -> float | None:
        """Step of the lattice that the values of `x` lie on, in units of x; None where they are continuous.

        What bits/dim are counted in: 2/255 for 8-bit pixels in [−1, 1].
        """
        return None

    @property
    def vocabulary(self) -> int:
        """Number of tokens, where `x` is tokens 0 … vocabulary − 1; 0 where it is not."""
        return 0

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the grid that the tokens of `x` lie on, in raster order; None where they lie on none."""
        return None

    @property
    def prompt_length(self) -> int:
        """How many of an example's first tokens are given when it is drawn anew."""
        return 0

    @property
    def stop(self) -> int | None:
        """The token after which a sequence has ended; None where sequences have no end of their own."""
        return None

    @abstractmethod
    def source(self, split: str) -> Source:
        """The records of `train` or `test`."""

    def check_batch_size(self, size: int) -> None:  # noqa: B027, most can be had in any number
        """Called before training.

        Raises:
          ValueError: a batch of so many examples would not hold what a batch is to hold.
        """

    @property
    def runs(self) -> tuple[str, ...]:
        """Folders of the runs that the records come from; none of them may be trained over."""
        return ()

    @property
    def made_by(self) -> str:
        """A digest of what made the records; empty where they are read. A run resumes only where this is the same."""
        return ""

    def zeros(self, size: int) -> Arrays:
        """A batch of zeros shaped like those of `source("train")`: all that `eval_shape` looks at. Reads no records."""
        batch: Arrays = {"x": np.zeros((size, *self.shape), np.int32 if self.vocabulary else np.float32)}
        if self.num_classes:
            batch["label"] = np.zeros((size,), np.int32)
        return batch

    def prepare(self) -> None:  # noqa: B027, most records are there to be read
        """Makes the records where they are made and not read; called once before training."""

    def pinned(self) -> "Dataset":
        """The same set with what it takes from its records written into its fields, so that a run needs them no more.

        An alphabet, say: the samples of a run are decoded where the text that it was trained on is not.
        """
        return self

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """Text as tokens.

        Raises:
          ValueError: the set is no text, or a part of this one is none of its tokens.
        """
        raise ValueError(f"{type(self).__name__} is no text")

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        """Tokens as text, up to the first `stop`.

        Raises:
          ValueError: the set is no text.
        """
        raise ValueError(f"{type(self).__name__} is no text")

    def condition(self, n: int, first: int = 0) -> Arrays:
        """What samples `first` … `first` + n − 1 are drawn from, [n, …], where that is the data's to say.

        A `prompt` that they begin with, a `source` that they translate. Nothing for most.
        """
        return {}

    def prompted(self, text: str) -> Arrays:
        """A user's own text as what one sample is drawn from, [1, …].

        Raises:
          ValueError: the data is no text, or of other characters.
        """
        return {"prompt": self.encode(text)[None]}

    def shown(self, x: np.ndarray) -> np.ndarray:
        """Samples as what a picture is made of: examples of `pictured`."""
        return x

    @property
    def pictured(self) -> "Dataset":
        """The set of what is shown, where `x` is codes or tokens of it; for most the set itself."""
        return self

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
    """The endless stream of one process's batches, a random-access source to grain: item i is batch i."""

    source: Source
    batch_size: int  # of all processes together
    seed: int
    rows: Int[np.ndarray, " r"] | None = None  # of each batch, those that this process reads; None: all

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, position: SupportsIndex) -> Arrays:
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        numbers = int(position) * self.batch_size + rows
        size = len(self.source)
        epochs, places = np.divmod(numbers, size)
        first, last = int(epochs[0]), int(epochs[-1])
        parts = [places] if first == last else [places[epochs == epoch] for epoch in range(first, last + 1)]
        drawn = [permutation(self.seed, first + i, size)[part] for i, part in enumerate(parts)]
        return self.source.read(np.concatenate(drawn), self.seed, numbers)
