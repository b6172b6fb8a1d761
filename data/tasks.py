"""Sequence tasks with known answers: an endless supply, and an accuracy that has a ceiling of exactly 1.

    Copying    s_1 … s_L, a delay of blanks, a marker, s_1 … s_L       the copying memory of 1511.06464
    Reversal   s_1 … s_L, a marker, s_L … s_1
    Sorting    s_1 … s_L, a marker, the same in ascending order
    Parity     b_1 … b_L, a marker, Σ b_i mod 2
    Adding     (u_i, m_i), i = 1 … L, answered by Σ m_i u_i            Hochreiter & Schmidhuber 1997, as in 1511.06464

The u_i are uniform on [0, 1), and m_i is 1 once in each half of the sequence, else 0. Whoever always answers 1 has a
mean squared error of Var(u + u') = 1/6 = 0.1667: a network that has not learnt to add does no better.
"""

from abc import abstractmethod
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from data import units
from data.dataset import Arrays, Dataset, Source, is_test
from data.drawn import DrawnSource

SYMBOLS = digits + ascii_uppercase + ascii_lowercase  # as they are printed, in ascending order


@dataclass(frozen=True, kw_only=True)
class Task(Dataset):
    """Base of the tasks: a new one defines `draw`."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        """n examples."""

    def source(self, split: str) -> Source:
        return DrawnSource(self, is_test(split))


@dataclass(frozen=True, kw_only=True)
class TokenTask(Task):
    """Base of those on tokens: `length` symbols, a marker, the answer; `weight` is 1 on the answer, 0 before it.

    A new one defines `kinds`, how many symbols there are to choose from, and `answer`.
    """

    length: int = 10  # symbols of a question
    MARKS: ClassVar[str] = ":"  # what stands for the tokens after the symbols, the marker last

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} is not positive")
        if not 2 <= self.kinds <= len(SYMBOLS):
            raise ValueError(f"symbols={self.kinds} is not between 2 and {len(SYMBOLS)}")

    @property
    @abstractmethod
    def kinds(self) -> int: ...

    @abstractmethod
    def answer(self, symbols: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n answer"]: ...

    @property
    def alphabet(self) -> str:
        """How the tokens are printed."""
        return SYMBOLS[: self.kinds] + self.MARKS

    @property
    def answer_length(self) -> int:
        return self.length

    @property
    def prompt_length(self) -> int:
        return self.length + 1

    @property
    def vocabulary(self) -> int:
        return len(self.alphabet)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.prompt_length + self.answer_length,)

    def zeros(self, size: int) -> Arrays:
        return {**super().zeros(size), "weight": np.zeros((size, *self.shape), np.float32)}

    def condition(self, n: int, first: int = 0) -> Arrays:
        """The test split's questions."""
        numbers = np.arange(first, first + n)
        return {"prompt": self.source("test").read(numbers, -1, numbers)["x"][:, : self.prompt_length]}

    def prompted(self, text: str) -> Arrays:
        prompt = self.encode(text)
        if len(prompt) != self.prompt_length:
            shown = self.decode(self.condition(1)["prompt"][0])
            raise ValueError(f"{text!r} has {len(prompt)} tokens, and a question has {self.prompt_length}: {shown!r}")
        return {"prompt": prompt[None]}

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        return units.encode(text, "characters", self.alphabet).astype(np.int32)

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        return units.decode(tokens, "characters", self.alphabet)

    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        symbols = rng.integers(self.kinds, size=(n, self.length))
        # Between the symbols and the answer stands the marker, and before it, where there is a delay, the blank.
        x = np.full((n, *self.shape), self.kinds, np.int32)
        x[:, : self.length] = symbols
        x[:, self.prompt_length - 1] = self.vocabulary - 1
        x[:, self.prompt_length :] = self.answer(symbols)
        weight = np.zeros(x.shape, np.float32)
        weight[:, self.prompt_length :] = 1.0
        return {"x": x, "weight": weight}


@dataclass(frozen=True, kw_only=True)
class Copying(TokenTask):
    """The symbols again, after a delay of blanks: what a recurrent state can hold, and for how long."""

    symbols: int = 8  # kinds of them
    delay: int = 0  # blanks before the marker
    MARKS: ClassVar[str] = "_:"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay < 0:
            raise ValueError(f"delay={self.delay} is negative")

    @property
    def kinds(self) -> int:
        return self.symbols

    @property
    def prompt_length(self) -> int:
        return self.length + self.delay + 1

    def answer(self, symbols: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n answer"]:
        return symbols


@dataclass(frozen=True, kw_only=True)
class Reversal(TokenTask):
    """The symbols from the last to the first."""

    symbols: int = 8  # kinds of them

    @property
    def kinds(self) -> int:
        return self.symbols

    def answer(self, symbols: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n answer"]:
        return symbols[:, ::-1]


@dataclass(frozen=True, kw_only=True)
class Sorting(TokenTask):
    """The symbols in ascending order."""

    symbols: int = 8  # kinds of them

    @property
    def kinds(self) -> int:
        return self.symbols

    def answer(self, symbols: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n answer"]:
        return np.sort(symbols, axis=1)


@dataclass(frozen=True, kw_only=True)
class Parity(TokenTask):
    """Whether the ones among the bits are odd in number: one answer that every bit turns over."""

    length: int = 20  # bits of a question

    @property
    def kinds(self) -> int:
        return 2

    @property
    def answer_length(self) -> int:
        return 1

    def answer(self, symbols: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n answer"]:
        return symbols.sum(axis=1, keepdims=True) % 2


@dataclass(frozen=True, kw_only=True)
class Adding(Task):
    """Pairs [length, 2] of a number and a mark; `target` is the sum of the two marked numbers."""

    length: int = 200

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length={self.length} has no two halves; at least 2 is allowed")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, 2)

    def zeros(self, size: int) -> Arrays:
        return {**super().zeros(size), "target": np.zeros((size,), np.float32)}

    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        half = self.length // 2
        x = np.zeros((n, self.length, 2), np.float32)
        x[:, :, 0] = rng.random((n, self.length), np.float32)
        marked = rng.integers([0, half], [half, self.length], size=(n, 2))
        np.put_along_axis(x[:, :, 1], marked, 1.0, axis=1)
        return {"x": x, "target": np.take_along_axis(x[:, :, 0], marked, axis=1).sum(axis=1)}
