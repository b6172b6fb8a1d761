"""Sequence to sequence: aligned files, and a generated language pair whose translations are known.

    source [S], x [T]    tokens of one vocabulary; a sentence, its stop, and stops up to the end of the row
    source_length        of the source with its stop: never 0, so that there is always something to attend to
    weight [T]           1 up to and including the first stop of x, then 0

The stop is the last token. Of x, the target, each token is predicted from the whole source and from those before it.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Integer

from data import units
from data.dataset import Arrays, Dataset, MalformedDataError, Source, is_test
from data.drawn import DrawnSource
from data.languages import Grammar


@dataclass(frozen=True, kw_only=True)
class Pairs(Dataset):
    """Base of the pairs: a new one defines `lengths`, `stop`, `encode`, `decode` and `source`."""

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, int]:
        """S and T."""

    @property
    @abstractmethod
    def stop(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.lengths[1],)

    @property
    def vocabulary(self) -> int:
        return self.stop + 1

    def condition(self, n: int, first: int = 0) -> Arrays:
        """The test split's sources."""
        source = self.source("test")
        records = np.arange(first, first + n)
        batch = source.read(records % len(source), -1, records)
        return {name: batch[name] for name in ("source", "source_length")}

    def prompted(self, text: str) -> Arrays:
        """What is translated; it must fit where sources do."""
        tokens, length = self.encode(text), self.lengths[0]
        if len(tokens) >= length:
            raise ValueError(f"a source of {len(tokens)} tokens and the stop are more than {length}")
        source = np.full((1, length), self.stop, np.int32)
        source[0, : len(tokens)] = tokens
        return {"source": source, "source_length": np.asarray([len(tokens) + 1], np.int32)}

    def zeros(self, size: int) -> Arrays:
        source, target = self.lengths
        return {
            "source": np.zeros((size, source), np.int32),
            "source_length": np.zeros((size,), np.int32),
            "x": np.zeros((size, target), np.int32),
            "weight": np.zeros((size, target), np.float32),
        }


def batch(source: Integer[np.ndarray, "b s"], x: Integer[np.ndarray, "b t"], stop: int) -> Arrays:
    """What a model is given, of rows that are filled up with stops."""
    return {
        "source": source.astype(np.int32),
        "source_length": units.weights(source, stop).sum(axis=1).astype(np.int32),
        "x": x.astype(np.int32),
        "weight": units.weights(x, stop),
    }


@dataclass(frozen=True)
class RowSource(Source):
    """Pairs in memory."""

    source: Integer[np.ndarray, "n s"]
    x: Integer[np.ndarray, "n t"]
    stop: int

    def __len__(self) -> int:
        return len(self.x)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        return batch(self.source[records], self.x[records], self.stop)


Paths = tuple[str, str]


@lru_cache(maxsize=4)
def _aligned(paths: Paths, changed: tuple[int, int], unit: units.Unit) -> tuple[list[str], list[str]]:
    source, target = (units.read_lines(path, unit) for path in paths)
    if len(source) != len(target):
        raise MalformedDataError(
            f"{paths[0]} has {len(source)} lines and {paths[1]} {len(target)}; line by line, each translates the other"
        )
    return source, target


@lru_cache(maxsize=4)
def _alphabet(paths: Paths, changed: tuple[int, int], unit: units.Unit) -> tuple[str, ...]:
    lines = [line for side in _aligned(paths, changed, unit) for line in side]
    if unit == "characters":
        return tuple(units.characters("".join(lines)))
    return tuple(sorted({word for line in lines for word in line.split()}))


@dataclass(frozen=True, kw_only=True)
class PairFiles(Pairs):
    """Two UTF-8 files, the lines of one the translations of the other's. A random part of them is held out."""

    source_path: str
    target_path: str
    unit: units.Unit = "characters"  # what a token is; words are what stands between blanks
    source_length: int = 64  # tokens of the longest source and its stop
    target_length: int = 64  # of the longest target and its stop
    alphabet: tuple[str, ...] = ()  # characters or words in the order of their tokens; where empty, the files', sorted
    held_out: float = 0.1  # fraction in the test split

    def __post_init__(self) -> None:
        units.check_alphabet(self.unit, self.alphabet)
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out={self.held_out} is not between 0 and 1")

    @property
    def lengths(self) -> tuple[int, int]:
        return self.source_length, self.target_length

    @property
    def stop(self) -> int:
        return units.size(self.unit, self.letters)

    @property
    def letters(self) -> tuple[str, ...]:
        """The alphabet in use; empty where tokens are bytes. Reads no file where it is a field."""
        return self.alphabet if self.unit == "bytes" or self.alphabet else _alphabet(*self._files())

    def pinned(self) -> "PairFiles":
        return replace(self, alphabet=self.letters)

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        return units.encode(text, self.unit, self.letters).astype(np.int32)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        return units.decode(tokens, self.unit, self.letters, self.stop)

    def source(self, split: str) -> Source:
        test, letters, tables = is_test(split), self.letters, []
        paths, *_ = files = self._files()
        for i, (path, lines, length) in enumerate(zip(paths, _aligned(*files), self.lengths, strict=True)):
            units.check_lengths(path, lines, self.unit, length, ("source_length", "target_length")[i])
            with units.of_file(path):
                tables.append(units.table(lines, self.unit, letters, length))
        sources, targets = tables
        kept = np.flatnonzero((sources[:, 0] != self.stop) | (targets[:, 0] != self.stop))  # not blank in both
        chosen = kept[units.split(self.source_path, len(kept), self.held_out, test)]
        return RowSource(sources[chosen], targets[chosen], self.stop)

    def _files(self) -> tuple[Paths, tuple[int, int], units.Unit]:
        paths = (self.source_path, self.target_path)
        return paths, (units.last_changed(paths[0]), units.last_changed(paths[1])), self.unit


@dataclass(frozen=True, kw_only=True)
class GeneratedPairs(Pairs):
    """Sentences of data/languages.py and their translations: an endless supply, of which one in ten is held out."""

    words: int = 40  # of the source language: half nouns, a quarter verbs, a quarter adjectives
    length: int = 8  # tokens of the longest sentence and its stop, in either language

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ValueError(f"length={self.length} is too short for a noun, a verb, a noun and the stop: 4 at least")
        _ = self.grammar  # which refuses too few words, or too many

    @property
    def grammar(self) -> Grammar:
        return Grammar(self.words)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.length, self.length

    @property
    def stop(self) -> int:
        return self.grammar.stop

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        return units.encode(text, "words", self.grammar.dictionary()).astype(np.int32)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        return units.decode(tokens, "words", self.grammar.dictionary(), self.stop)

    def translate(self, source: Int[np.ndarray, " s"]) -> Int[np.ndarray, "{self.length}"]:
        """The one right x of a source, which ends at its first stop or where the row does.

        Raises:
          ValueError: it is no sentence, or too long a one.
        """
        words = source[np.cumsum(source == self.stop) == 0].tolist()
        if len(words) >= self.length:
            raise ValueError(f"a sentence of {len(words)} words and the stop are more than length={self.length}")
        target = self.grammar.translate(words)
        return np.asarray(target + [self.stop] * (self.length - len(target)), np.int32)

    def source(self, split: str) -> Source:
        test = is_test(split)
        return DrawnSource(Sentences(self, test), test)


@dataclass(frozen=True)
class Sentences:
    """What one split of the generated pairs is drawn from."""

    pairs: GeneratedPairs
    test: bool

    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        most = (self.pairs.length - 4) // 2
        sides = self.pairs.grammar.draw(rng, n, most, self.test)
        rest = self.pairs.length - sides[0].shape[1]  # of an odd length
        source, x = (np.pad(side, ((0, 0), (0, rest)), constant_values=self.pairs.stop) for side in sides)
        return batch(source, x, self.pairs.stop)
