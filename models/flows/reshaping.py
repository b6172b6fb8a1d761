"""Rearrangements of an example's numbers: volume is preserved, and log|det| is 0.

squeeze     [H, W, C] → [H/2, W/2, 4C]: each 2×2 block of pixels becomes channels          1605.08803 §3.6, fig. 3
vectors     a bijection on the example as one vector
patches     a bijection on an image as a sequence of patches, row by row                   TarFlow 2412.06329 §2
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from models.flows.bijection import Bijection, Moved, Params, zeros
from models.flows.combinators import Within
from models.model import Condition
from models.patches import check_sides, patched, unpatched


@dataclass(frozen=True, kw_only=True)
class Squeeze(Bijection):
    """Space to depth; channel 4c + 2i + j of the result is channel c of the block's pixel (i, j)."""

    def forward(self, params: Params, x: Float[Array, "b h w c"], condition: Condition = None) -> Moved:
        check_sides(x, 2, "a squeeze")
        b, h, w, c = x.shape
        blocks = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
        return blocks.reshape(b, h // 2, w // 2, 4 * c), zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b h w c"], condition: Condition = None) -> Moved:
        b, h, w, c = z.shape
        if c % 4:
            raise ValueError(f"to undo a squeeze takes channels that 4 divides, not {c}")
        blocks = z.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return blocks.reshape(b, 2 * h, 2 * w, c // 4), zeros(z)


@dataclass(frozen=True, kw_only=True)
class Vectors(Within):
    """`bijection` of the flattened example; the result has the example's shape again."""

    def open(self, x: Float[Array, "b *s"]) -> tuple[Float[Array, "b d"], Any]:
        return x.reshape(x.shape[0], -1), x.shape

    def close(self, shown: Float[Array, "b d"], rest: Any) -> Float[Array, "b *s"]:
        return shown.reshape(rest)


@dataclass(frozen=True, kw_only=True)
class Patches(Within):
    """`bijection` of an image's patches as tokens [B, T, P·P·C]; the result is an image again, of the same shape."""

    patch: int  # P, side of a patch; must divide the image's sides

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"a patch has a side of at least 1, got patch={self.patch}")

    def open(self, x: Float[Array, "b *s"]) -> tuple[Float[Array, "b t f"], Any]:
        p = self.patch
        check_sides(x, p, f"a flow over patches of {p}x{p}")
        b, *_, c = x.shape
        return patched(x, p).reshape(b, -1, p * p * c), x.shape

    def close(self, shown: Float[Array, "b t f"], rest: Any) -> Float[Array, "b h w c"]:
        p, (b, h, w, _) = self.patch, rest
        return unpatched(shown.reshape(b, h // p, w // p, -1), p)
