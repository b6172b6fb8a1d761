"""Rearrangements of an example's numbers: volume is preserved, and log|det| is 0.

squeeze     [H, W, C] → [H/2, W/2, 4C]: each 2×2 block of pixels becomes channels          1605.08803 §3.6, fig. 3
vectors     a bijection on the example as one vector
patches     a bijection on an image as a sequence of patches, row by row                   TarFlow 2412.06329 §2
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params, zeros
from models.model import Condition


@dataclass(frozen=True, kw_only=True)
class Squeeze(Bijection):
    """Space to depth; channel 4c + 2i + j of the result is channel c of the block's pixel (i, j)."""

    def init(self, key: Key[Array, ""], x: Float[Array, "b h w c"], condition: Condition = None) -> Params:
        return {}

    def forward(self, params: Params, x: Float[Array, "b h w c"], condition: Condition = None) -> Moved:
        b, h, w, c = x.shape
        if h % 2 or w % 2:
            raise ValueError(f"a squeeze halves both sides of an image, and {h}x{w} has an odd one")
        blocks = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
        return blocks.reshape(b, h // 2, w // 2, 4 * c), zeros(x)

    def inverse(self, params: Params, z: Float[Array, "b h w c"], condition: Condition = None) -> Moved:
        b, h, w, c = z.shape
        if c % 4:
            raise ValueError(f"to undo a squeeze takes channels that 4 divides, not {c}")
        blocks = z.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return blocks.reshape(b, 2 * h, 2 * w, c // 4), zeros(z)


@dataclass(frozen=True, kw_only=True)
class Vectors(Bijection):
    """`bijection` of the flattened example; the result has the example's shape again."""

    bijection: Bijection

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return self.bijection.init(key, x.reshape(x.shape[0], -1), condition)

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        z, logdet = self.bijection.forward(params, x.reshape(x.shape[0], -1), condition)
        return z.reshape(x.shape), logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        x, logdet = self.bijection.inverse(params, z.reshape(z.shape[0], -1), condition)
        return x.reshape(z.shape), logdet

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        return self.bijection.pull(params, z.reshape(z.shape[0], -1), condition).reshape(z.shape)

    def observe(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Any:
        z, logdet, numbers = self.bijection.observe(params, x.reshape(x.shape[0], -1), condition)
        return z.reshape(x.shape), logdet, numbers

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        flat, bar = z.reshape(z.shape[0], -1), z_bar.reshape(z.shape[0], -1)
        x, x_bar, params_bar, condition_bar = self.bijection.backward(params, flat, condition, bar, logdet_bar)
        return x.reshape(z.shape), x_bar.reshape(z.shape), params_bar, condition_bar


@dataclass(frozen=True, kw_only=True)
class Patches(Bijection):
    """`bijection` of an image's patches as tokens [B, T, P·P·C]; the result is an image again, of the same shape."""

    patch: int  # P, side of a patch; must divide the image's sides
    bijection: Bijection

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"a patch has a side of at least 1, got patch={self.patch}")

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        """Raises ValueError where `x` is not of images whose sides the patch divides; so does all else here."""
        return self.bijection.init(key, self._tokens(x), condition)

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        z, logdet = self.bijection.forward(params, self._tokens(x), condition)
        return self._image(z, x), logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        x, logdet = self.bijection.inverse(params, self._tokens(z), condition)
        return self._image(x, z), logdet

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *t"]:
        return self._image(self.bijection.pull(params, self._tokens(z), condition), z)

    def observe(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Any:
        z, logdet, numbers = self.bijection.observe(params, self._tokens(x), condition)
        return self._image(z, x), logdet, numbers

    def backward(
        self, params: Params, z: Float[Array, "b *s"], condition: Condition, z_bar: Any, logdet_bar: Any
    ) -> tuple[Float[Array, "b *t"], Any, Params, dict[str, Any]]:
        tokens, bar = self._tokens(z), self._tokens(z_bar)
        x, x_bar, params_bar, condition_bar = self.bijection.backward(params, tokens, condition, bar, logdet_bar)
        return self._image(x, z), self._image(x_bar, z), params_bar, condition_bar

    def _tokens(self, x: Float[Array, "b *s"]) -> Float[Array, "b t f"]:
        p = self.patch
        if x.ndim != 4 or x.shape[1] % p or x.shape[2] % p:
            got = "x".join(map(str, x.shape[1:3])) if x.ndim == 4 else f"arrays with {x.ndim - 1} axes"
            raise ValueError(f"patches of {p}x{p} are of images whose sides {p} divides, not {got}")
        b, h, w, c = x.shape
        return x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, (h // p) * (w // p), p * p * c)

    def _image(self, tokens: Float[Array, "b t f"], like: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        p, (b, h, w, c) = self.patch, like.shape
        return tokens.reshape(b, h // p, w // p, p, p, c).swapaxes(2, 3).reshape(b, h, w, c)
