"""One text file as tokens: windows of it, or its lines.

    (1)  training record i is the window t_i … t_{i+L}; test record i is t_{iL} … t_{iL+L}        L the context
    (2)  in S streams, training example n is the window that begins at rP + jL,
         r = n mod S,  j = ⌊n/S⌋ mod J,  P = ⌊N/S⌋ tokens a row,  J = ⌊(P − 1)/L⌋ windows a row   N training tokens

A window has one token more than the context: each is given but the last, each is predicted but the first. In (2), for
backpropagation through time that carries its state from batch to batch, a row's next window begins with the token that
its last one ended with; after J steps all rows begin anew.
"""

import sysconfig
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt

from data import units
from data.dataset import Arrays, Dataset, MalformedDataError, MissingDataError, Source, is_test

LIBRARY = "the standard library"


def _standard_library() -> str:
    """The sources of the running Python's own modules: 4 MB in 96 characters that are there already."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sources = b"".join(source for source in map(Path.read_bytes, files) if source.isascii())
    if not sources:
        raise MissingDataError("this Python came without its library's sources; name a text file with --data.path")
    return sources.decode()


def _changed(path: str) -> int:
    return units.last_changed(path) if path else 0


@lru_cache(maxsize=4)
def _alphabet(path: str, changed: int) -> str:
    return units.characters(units.read(path, "characters") if path else _standard_library())


@lru_cache(maxsize=4)
def _tokens(path: str, changed: int, unit: units.Unit, alphabet: str) -> UInt[np.ndarray, " n"]:
    text = units.read(path, unit) if path else _standard_library()
    with units.of_file(path or LIBRARY):
        return units.encode(text, unit, alphabet)


@lru_cache(maxsize=4)
def _lines(path: str, changed: int, unit: units.Unit, length: int) -> list[str]:
    lines = units.read_lines(path, unit)
    units.check_lengths(path, lines, unit, length, "length")
    return [line for line in lines if line.strip()]


@dataclass(frozen=True, kw_only=True)
class Written(Dataset):
    """Base of the sets of one file: a new one defines `own_alphabet`, what the file itself is written in."""

    unit: Literal["characters", "bytes"] = "characters"  # what a token is
    alphabet: str = ""  # the characters in order of their tokens; where empty, those of the file, sorted
    held_out: float = 0.1  # fraction in the test split

    def __post_init__(self) -> None:
        units.check_alphabet(self.unit, self.alphabet)
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out={self.held_out} is not between 0 and 1")

    @abstractmethod
    def own_alphabet(self) -> str: ...

    @property
    def letters(self) -> str:
        """The alphabet in use; empty where tokens are bytes. Reads no file where it is a field."""
        return "" if self.unit == "bytes" else self.alphabet or self.own_alphabet()

    def pinned(self) -> "Written":
        return replace(self, alphabet=self.letters)

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        return units.encode(text, self.unit, self.letters).astype(np.int32)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        return units.decode(tokens, self.unit, self.letters, self.stop)


@dataclass(frozen=True, kw_only=True)
class Text(Written):
    """Windows [context + 1] of a text, the last part of which is held out."""

    path: str = ""  # of a UTF-8 file; where empty, the sources of Python's standard library
    context: int = 64  # how many tokens are predicted in a window
    streams: int = 0  # (2), as many as the batch size; 0 is (1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1 or self.streams < 0:
            raise ValueError(f"context={self.context} is not positive, or streams={self.streams} is negative")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.context + 1,)

    @property
    def vocabulary(self) -> int:
        return units.size(self.unit, self.letters)

    def condition(self, n: int, first: int = 0) -> Arrays:
        """Samples begin with a new line, where there is one."""
        letters = self.letters
        token = ord("\n") if self.unit == "bytes" else max(letters.find("\n"), 0)
        return {"prompt": np.full((n, 1), token, np.int32)}

    def own_alphabet(self) -> str:
        return _alphabet(self.path, _changed(self.path))

    def zeros(self, size: int) -> Arrays:
        return {"x": np.zeros((size, *self.shape), np.int32)}  # tokens, whatever the alphabet is

    def source(self, split: str) -> Source:
        test = is_test(split)
        text = _tokens(self.path, _changed(self.path), self.unit, self.letters)
        cut = int(len(text) * (1.0 - self.held_out))
        window, rows = self.context + 1, max(1, self.streams)
        if cut < rows * window or len(text) - cut < window:
            of = f"{rows}·{window}" if self.streams else window
            raise MalformedDataError(
                f"{self.path or LIBRARY} has {len(text)} tokens, {cut} to train on and {len(text) - cut} held out, and "
                f"context={self.context} needs {of} and {window}"
            )
        if test:
            return WindowSource(text[cut:], window, self.context)
        return WindowSource(text[:cut], window, 1, self.streams)


@dataclass(frozen=True)
class WindowSource(Source):
    """Windows at every `stride`-th token, (1), or in streams, (2)."""

    text: UInt[np.ndarray, " n"]
    window: int
    stride: int
    streams: int = 0

    def __len__(self) -> int:
        if self.streams:
            return self.streams * self._steps
        return (len(self.text) - self.window) // self.stride + 1

    @property
    def _steps(self) -> int:
        return (len(self.text) // self.streams - 1) // (self.window - 1)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        first = records * self.stride
        if self.streams:
            rows, steps = numbers % self.streams, numbers // self.streams % self._steps
            first = rows * (len(self.text) // self.streams) + steps * (self.window - 1)
        windows = np.lib.stride_tricks.sliding_window_view(self.text, self.window)
        return {"x": windows[first].astype(np.int32)}


@dataclass(frozen=True, kw_only=True)
class Lines(Written):
    """A file's lines [length], each ended and filled up by the stop token, the last one; blank lines are left out.

    `weight` is 1 up to and including the first stop, then 0. A random part of the lines is held out.
    """

    path: str  # of a text file
    length: int = 32  # tokens of the longest line and its stop

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def vocabulary(self) -> int:
        return self.stop + 1

    @property
    def stop(self) -> int:
        return units.size(self.unit, self.letters)

    def own_alphabet(self) -> str:
        return units.characters("".join(self._lines()))

    def zeros(self, size: int) -> Arrays:
        return {"x": np.zeros((size, self.length), np.int32), "weight": np.zeros((size, self.length), np.float32)}

    def source(self, split: str) -> Source:
        test, lines = is_test(split), self._lines()
        chosen = units.split(self.path, len(lines), self.held_out, test)
        with units.of_file(self.path):
            rows = units.table(lines, self.unit, self.letters, self.length)
        return LineSource(rows[chosen], self.stop)

    def _lines(self) -> list[str]:
        return _lines(self.path, _changed(self.path), self.unit, self.length)


@dataclass(frozen=True)
class LineSource(Source):
    """Lines in memory."""

    rows: UInt[np.ndarray, "n t"]
    stop: int

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        x = self.rows[records].astype(np.int32)
        return {"x": x, "weight": units.weights(x, self.stop)}
