"""Which part of x a coupling looks at and which it moves.

    halves          the first half of the last axis is seen, the rest moved: of vectors, or of an image's channels
                    (the channel-wise mask)                                                    1605.08803 §3.4
    checkerboard    of an image, the pixels with i + j even are seen, in place: zeros stand where they are moved
                                                                                               1605.08803 fig. 3

`swap` exchanges the two parts. Halves are taken out of x; a checkerboard's parts are as large as x, so that
convolutions still see where a pixel is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Seen = Float[Array, "b *seen"]
Part = Float[Array, "b *moved"]


@dataclass(frozen=True, kw_only=True)
class Mask(ABC):
    """Base of all masks. `merge` undoes `split`; both are linear, and each other's transpose."""

    swap: bool = False  # the other part is moved

    @abstractmethod
    def split(self, x: Float[Array, "b *s"]) -> tuple[Seen, Part]:
        """(seen, moved)."""

    @abstractmethod
    def merge(self, seen: Seen, moved: Part) -> Float[Array, "b *s"]: ...

    def counts(self, moved: Part) -> Any:
        """1 where an element of `moved` is one of x that moves, 0 where it is padding; broadcasts against it."""
        return jnp.ones((1,) * moved.ndim, moved.dtype)


@dataclass(frozen=True, kw_only=True)
class Halves(Mask):
    """The two halves of the last axis; of an odd length the first is the smaller."""

    def split(self, x: Float[Array, "b *s"]) -> tuple[Seen, Part]:
        size = x.shape[-1]
        if size < 2:
            raise ValueError(
                f"halves of {size} channel{'s' * (size != 1)}: there is nothing to split. Squeeze images first"
            )
        first, second = x[..., : size // 2], x[..., size // 2 :]
        return (second, first) if self.swap else (first, second)

    def merge(self, seen: Seen, moved: Part) -> Float[Array, "b *s"]:
        return jnp.concatenate((moved, seen) if self.swap else (seen, moved), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Checkerboard(Mask):
    """Black and white pixels of images [B, H, W, C]."""

    def _board(self, x: Float[Array, "b *s"]) -> Float[Array, "1 h w 1"]:
        if x.ndim != 4:
            raise ValueError(f"a checkerboard is of images [B, H, W, C], got {x.ndim} axes")
        rows, columns = np.indices(x.shape[1:3])
        return jnp.asarray((rows + columns + self.swap) % 2, x.dtype)[None, :, :, None]

    def split(self, x: Float[Array, "b *s"]) -> tuple[Seen, Part]:
        moves = self._board(x)
        return (1.0 - moves) * x, moves * x

    def merge(self, seen: Seen, moved: Part) -> Float[Array, "b *s"]:
        moves = self._board(moved)
        return (1.0 - moves) * seen + moves * moved

    def counts(self, moved: Part) -> Any:
        return self._board(moved)
