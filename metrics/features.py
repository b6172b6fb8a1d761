"""Feature functions: what generative models are compared in. Every number belongs to its features.

A feature function maps images [n, …] in [−1, 1] to vectors [n, d]. Its name is printed and stored beside each number
that is measured in it, for numbers in different features cannot be compared. Raw pixels unless another is named
(training/features.py).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


def flat(x: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n d"]:
    """Examples as float64 vectors."""
    return np.asarray(x, np.float64).reshape(len(x), -1)


def check_sizes(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m e"]) -> None:
    """For what compares the vectors of two sets.

    Raises:
      ValueError: those of one are longer than those of the other.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the first's examples are vectors of {first.shape[1]} numbers and the second's of {second.shape[1]}: only "
            "those of one size can be compared"
        )


def check_sides(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m e"]) -> None:
    """`check_sizes`, and for what one number that is not finite makes meaningless.

    Raises:
      ValueError: as `check_sizes`, or a set holds one; says how many examples do.
    """
    check_sizes(first, second)
    for name, side in (("first", first), ("second", second)):
        wrong = int((~np.isfinite(side)).any(1).sum())
        if wrong:
            raise ValueError(f"{wrong} of the {name}'s {len(side)} examples have features that are not finite")


class Features(ABC):
    """Base of all feature functions."""

    name: str

    @abstractmethod
    def size(self, shape: tuple[int, ...]) -> int:
        """d, for images of that shape."""

    @abstractmethod
    def __call__(self, x: Float[np.ndarray, "n *s"]) -> Float64[np.ndarray, "n d"]:
        """Of an image that holds a number that is not finite, a vector that does so too."""


@dataclass(frozen=True)
class Pixels(Features):
    """The images themselves, as vectors."""

    name: str = "raw pixels"

    def size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def __call__(self, x: Float[np.ndarray, "n *s"]) -> Float64[np.ndarray, "n d"]:
        return flat(x)


PIXELS = Pixels()


@dataclass(frozen=True, eq=False)
class Learned(Features):
    """What a network has learned to tell images apart by: of one length, whatever the images' shape."""

    name: str
    length: int
    function: Callable[[Float[np.ndarray, "n *s"]], Float[np.ndarray, "n d"]]

    def size(self, shape: tuple[int, ...]) -> int:
        return self.length

    def __call__(self, x: Float[np.ndarray, "n *s"]) -> Float64[np.ndarray, "n d"]:
        return np.asarray(self.function(x), np.float64)
