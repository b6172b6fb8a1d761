"""Text and tokens: what the sets of data/text.py, data/tasks.py and data/pairs.py have in common.

(1)  weight_t = 1 if no stop token stands before t, else 0: a sequence counts up to and including its stop
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Integer, UInt

from data.dataset import MalformedDataError, MissingDataError

Unit = Literal["characters", "bytes", "words"]
Alphabet = str | tuple[str, ...]  # the characters or words in the order of their tokens; empty where those are bytes
CODE_POINTS = 0x110000


def last_changed(path: str) -> int:
    """When the file was written, in ns: with its path, the key that its records are cached under.

    Raises:
      MissingDataError: there is none.
    """
    if not Path(path).is_file():
        raise MissingDataError(f"there is no text file {path!r}")
    return Path(path).stat().st_mtime_ns


def read(path: str, unit: Unit) -> str:
    """A file's text. Where the unit is bytes, those that are no UTF-8 come as the surrogates that `encode` undoes.

    Raises:
      MalformedDataError: it is empty, or not UTF-8.
    """
    raw = Path(path).read_bytes()
    if not raw:
        raise MalformedDataError(f"{path} is empty")
    try:
        return raw.decode("utf-8", "surrogateescape" if unit == "bytes" else "strict")
    except UnicodeDecodeError as error:
        raise MalformedDataError(
            f"{path} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}; --data.unit bytes reads any file"
        ) from error


@contextmanager
def of_file(path: str) -> Iterator[None]:
    """Says of which file it was that `encode` could not read a part."""
    try:
        yield
    except ValueError as error:
        raise MalformedDataError(f"{path}: {error}") from error


def read_lines(path: str, unit: Unit) -> list[str]:
    """The file's lines, blank ones too. A line ends at \\n or \\r\\n and nowhere else, whatever Unicode allows."""
    return [line.removesuffix("\r") for line in read(path, unit).removesuffix("\n").split("\n")]


def characters(text: str) -> str:
    """The distinct characters, sorted."""
    seen = np.zeros(CODE_POINTS, bool)
    seen[_code_points(text)] = True
    return "".join(map(chr, np.flatnonzero(seen)))


def check_alphabet(unit: Unit, alphabet: Alphabet) -> None:
    """Raises ValueError where it is not one."""
    if unit == "bytes" and alphabet:
        raise ValueError("bytes have no alphabet; leave it empty")
    if len(set(alphabet)) < len(alphabet):
        twice = next(part for i, part in enumerate(alphabet) if part in alphabet[:i])
        raise ValueError(f"the alphabet has {twice!r} twice")


def size(unit: Unit, alphabet: Alphabet) -> int:
    """How many tokens there are."""
    return 256 if unit == "bytes" else len(alphabet)


def encode(text: str, unit: Unit, alphabet: Alphabet) -> UInt[np.ndarray, " t"]:
    """Tokens, in the smallest type that holds them.

    Raises:
      ValueError: a part of the text is not in the alphabet.
    """
    if unit == "bytes":
        return np.frombuffer(_as_bytes(text), np.uint8)
    dtype = np.min_scalar_type(max(len(alphabet) - 1, 0))
    if unit == "words":
        words, number = text.split(), {word: i for i, word in enumerate(alphabet)}
        unknown = next((word for word in words if word not in number), None)
        tokens = np.asarray([number.get(word, 0) for word in words], dtype)
    else:
        points, letters = _code_points(text), _code_points("".join(alphabet))
        known, number = np.zeros(CODE_POINTS, bool), np.zeros(CODE_POINTS, dtype)
        known[letters], number[letters] = True, np.arange(len(letters))
        strange = points[~known[points]]
        unknown = chr(strange[0]) if len(strange) else None
        tokens = number[points]
    if unknown is not None:
        parts = repr("".join(alphabet))[1:-1] if unit == "characters" else ", ".join(alphabet)
        listed = parts if len(parts) <= 120 else parts[:120] + "…"
        raise ValueError(f"{unknown!r} is not among the {len(alphabet)} {unit} of the text: {listed}")
    return tokens


def decode(tokens: Integer[np.ndarray, " t"], unit: Unit, alphabet: Alphabet, stop: int | None = None) -> str:
    """The inverse of `encode`, up to the first stop.

    Raises:
      ValueError: one of them is no token.
    """
    shown = tokens if stop is None else tokens[np.cumsum(tokens == stop) == 0]
    wrong = shown[(shown < 0) | (shown >= size(unit, alphabet))]
    if len(wrong):
        raise ValueError(f"{wrong[0]} is not among the tokens 0 … {size(unit, alphabet) - 1}")
    if unit == "bytes":
        return shown.astype(np.uint8).tobytes().decode("utf-8", "replace")
    return (" " if unit == "words" else "").join(alphabet[token] for token in shown.tolist())


def sizes(lines: Sequence[str], unit: Unit) -> Int[np.ndarray, " n"]:
    """How many tokens each line has, its stop not counted."""
    parts = {"characters": str, "bytes": _as_bytes, "words": str.split}[unit]
    return np.asarray([len(parts(line)) for line in lines], np.int64)


def check_lengths(path: str, lines: Sequence[str], unit: Unit, length: int, field: str) -> None:
    """Raises MalformedDataError where a line and its stop are more than `length` tokens."""
    found = sizes(lines, unit)
    if len(found) and found.max() >= length:
        first = int(np.argmax(found >= length))
        raise MalformedDataError(
            f"line {first + 1} of {path} has {found[first]} {unit}, and {field}={length} has room for {length - 1} and "
            f"the stop; the longest line needs {found.max() + 1}"
        )


def table(
    lines: Sequence[str], unit: Unit, alphabet: Alphabet, length: int
) -> UInt[np.ndarray, "{len(lines)} {length}"]:
    """A row of tokens a line; what is left of a row is the stop token, the one after the last of the alphabet."""
    stop = size(unit, alphabet)
    rows = np.full((len(lines), length), stop, np.min_scalar_type(stop))
    joined = (" " if unit == "words" else "").join(lines)
    rows[np.arange(length) < sizes(lines, unit)[:, None]] = encode(joined, unit, alphabet)
    return rows


def split(path: str, lines: int, held_out: float, test: bool) -> Int[np.ndarray, " n"]:
    """Which of the lines are in the split.

    Raises:
      MalformedDataError: there are too few.
    """
    # RandomState's streams are frozen for ever, so the split is the same under every NumPy.
    order = np.random.RandomState(0).permutation(lines)
    count = max(1, round(held_out * lines))
    if lines <= count:
        raise MalformedDataError(f"{path} has too few lines to train on and to hold out {held_out:.0%} of: {lines}")
    return order[-count:] if test else order[:-count]


def weights(tokens: Integer[np.ndarray, "b t"], stop: int) -> Float[np.ndarray, "b t"]:
    """Eq. (1)."""
    stops = tokens == stop
    return (np.cumsum(stops, axis=1) - stops == 0).astype(np.float32)


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _code_points(text: str) -> UInt[np.ndarray, " t"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
