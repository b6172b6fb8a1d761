"""Any TFDS image set by name, read from array_record files without TensorFlow."""

import difflib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Int

from data.arrays import ArraySource
from data.dataset import Arrays, Dataset, MissingDataError, Source, UnknownDataError
from data.pixels import decode, to_model_space

IN_MEMORY = 2**30  # bytes of decoded pixels up to which a split is cached


@lru_cache(maxsize=8)
def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of decoders that are not used here
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise UnknownDataError(f"TFDS has no set {name!r}" + (f"; the nearest are {', '.join(near)}" if near else ""))
    builder = tfds.builder(name, file_format="array_record")
    if not builder.is_prepared():
        folder = builder.data_path.parent.parent
        raise MissingDataError(
            f"{name} is not in {folder} (set TFDS_DATA_DIR to look elsewhere). To prepare it there: "
            f'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', file_format='array_record', data_dir='{folder}').download_and_prepare()\""
        )
    features: Any = builder.info.features
    if "image" not in features:
        raise UnknownDataError(f"{name} is not an image set: its features are {', '.join(features)}")
    return builder


@lru_cache(maxsize=4)
def _source(name: str, split: str, size: int | None, flip: bool) -> Source:
    import tensorflow_datasets as tfds

    builder = _builder(name)
    if split.partition("[")[0] not in builder.info.splits:
        raise UnknownDataError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except ValueError as error:  # what stands in the brackets
        raise UnknownDataError(f"{name} has no split {split!r}: {str(error).partition(chr(10))[0]}") from error
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
        if split not in ("train", "test"):
            raise UnknownDataError(f"a data set has the splits train and test, not {split!r}")
        shape = self.shape
        name = self.train if split == "train" else self.test
        return _source(self.name, name, self.size and shape[0], self.flip and split == "train")
