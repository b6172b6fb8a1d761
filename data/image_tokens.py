"""Images as sequences: the levels of their pixels, one after the other, are tokens.

    (1)  token = (x + 1)/w,  x = w·token − 1        w the set's bin width, 2/w + 1 levels

Row by row, in a row from left to right, and of a pixel one channel after the other: red, green, blue.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int, Integer

from data.dataset import Arrays, Dataset, Source
from data.digits import Digits


@dataclass(frozen=True, kw_only=True)
class ImageTokens(Dataset):
    """x is tokens [H·W·C] of an image set [H, W, C]; `label` is that of the image."""

    images: Dataset = field(default_factory=Digits)

    @property
    def shape(self) -> tuple[int, ...]:
        return (math.prod(self.images.shape),)

    @property
    def num_classes(self) -> int:
        return self.images.num_classes

    @property
    def vocabulary(self) -> int:
        return round(2.0 / self._width) + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Of a row, one channel after the other."""
        height, width, channels = self.images.shape
        return height, width * channels

    @property
    def open_set(self) -> bool:
        return self.images.open_set

    @property
    def runs(self) -> tuple[str, ...]:
        return self.images.runs

    @property
    def made_by(self) -> str:
        return self.images.made_by

    def prepare(self) -> None:
        self.images.prepare()

    def pinned(self) -> "ImageTokens":
        return replace(self, images=self.images.pinned())

    def source(self, split: str) -> Source:
        return ImageTokenSource(self.images.source(split), self._width)

    def shown(self, x: Integer[np.ndarray, "n t"]) -> Float[np.ndarray, "n h w c"]:
        """Eq. (1), in the arithmetic that the sets scale their levels by: the images come back to the last bit."""
        return (x.astype(np.float32) * np.float32(self._width) - np.float32(1.0)).reshape(-1, *self.images.shape)

    @property
    def pictured(self) -> Dataset:
        return self.images

    @property
    def _width(self) -> float:
        width, shape = self.images.bin_width, self.images.shape
        if width is None or len(shape) != 3:
            raise ValueError(
                f"{type(self.images).__name__} has values of shape {shape}"
                f"{'' if width else ' that are continuous'}; tokens are made of images in levels"
            )
        return width


@dataclass(frozen=True)
class ImageTokenSource(Source):
    """Another set's records, as tokens."""

    images: Source
    width: float

    @property
    def threads(self) -> int:
        return self.images.threads

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        batch = self.images.read(records, seed, numbers)
        tokens = np.round((batch["x"] + 1.0) / self.width).astype(np.int32)
        return {**batch, "x": tokens.reshape(len(tokens), -1)}
