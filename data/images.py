"""Any TFDS image set by name, read from array_record files without TensorFlow."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Int

from data.arrays import ArraySource
from data.dataset import Arrays, Dataset, Source, UnknownDataError, is_test
from data.pixels import decode, to_model_space
from data.tfds import open_split, prepared

IN_MEMORY = 2**30  # bytes of decoded pixels up to which a split is cached


def _builder(name: str) -> Any:
    builder = prepared(name)
    features: Any = builder.info.features
    if "image" not in features:
        raise UnknownDataError(f"{name} is not an image set: its features are {', '.join(features)}")
    return builder


@lru_cache(maxsize=4)
def _source(name: str, split: str, size: int | None, flip: bool) -> Source:
    import tensorflow_datasets as tfds

    builder = _builder(name)
    records = open_split(name, split, decoders={"image": tfds.decode.SkipDecoding()})
    to_pixels = partial(decode, channels=builder.info.features["image"].shape[-1], size=size)
    stored = builder.info.features["image"].shape
    height, width, channels = (size, size, stored[-1]) if size else stored
    if len(records) * height * width * channels > IN_MEMORY:
        return RecordSource(records, to_pixels, flip)
    examples = records.__getitems__(list(range(len(records))))
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        pixels = np.stack(list(pool.map(to_pixels, [example["image"] for example in examples])))
    labels = np.asarray([example["label"] for example in examples]) if "label" in examples[0] else None
    return ArraySource(pixels, labels, to_model_space, flip)


@dataclass(frozen=True)
class RecordSource(Source):
    """Records decoded as they are read, for sets too large to hold."""

    records: Any
    to_pixels: Any
    flip: bool

    @property
    def threads(self) -> int:
        return 8

    def __len__(self) -> int:
        return len(self.records)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        examples = self.records.__getitems__(records.tolist())
        pixels = np.stack([self.to_pixels(example["image"]) for example in examples])
        labels = np.asarray([example["label"] for example in examples]) if "label" in examples[0] else None
        # The same reading as of a set in memory, of these records alone.
        return ArraySource(pixels, labels, to_model_space, self.flip).read(np.arange(len(records)), seed, numbers)


@dataclass(frozen=True, kw_only=True)
class TFDS(Dataset):
    """A TFDS set of images, such as mnist, fashion_mnist, cifar10, omniglot. x is [H, W, C] in [−1, 1]."""

    name: str  # as TFDS spells it
    train: str = "train"  # which TFDS split is trained on; a part of one is train[:50000] or train[90%:]
    test: str = "test"  # which is held out
    size: int | None = None  # cut to the centred square and resize to size × size; needed where sizes differ
    flip: bool = False  # mirror half of the training images

    @property
    def shape(self) -> tuple[int, ...]:
        stored = _builder(self.name).info.features["image"].shape
        shape = (self.size, self.size, stored[-1]) if self.size else stored
        if None in shape:
            raise UnknownDataError(f"the images of {self.name} differ in size; choose one with --data.size")
        return tuple(shape)

    @property
    def num_classes(self) -> int:
        features = _builder(self.name).info.features
        return features["label"].num_classes if "label" in features else 0

    @property
    def bin_width(self) -> float | None:
        """2/255 for 8-bit pixels, 2/65535 for 16-bit ones, as the set declares them; no image is opened.

        Sets of 1-bit files are declared as 8-bit ones, and counted as such.
        """
        dtype = np.dtype(_builder(self.name).info.features["image"].np_dtype)
        return 2.0 / np.iinfo(dtype).max if np.issubdtype(dtype, np.unsignedinteger) else None

    def source(self, split: str) -> Source:
        test = is_test(split)
        shape = self.shape
        return _source(self.name, self.test if test else self.train, self.size and shape[0], self.flip and not test)
