"""A set of JPEGs as TFDS has them, written without TensorFlow: for benchmarks/input_pipeline.py.

A module of its own, as a user's builder is: data workers import it.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZE, CLASSES, COUNT = 256, 10, 2000


def jpeg(number: int) -> bytes:
    """A colour image of smooth random structure, weaker with every halving of its scale: 15 to 40 kB."""
    rng = np.random.default_rng(number)
    x = rng.integers(0, 256, (4, 4, 3))
    while len(x) < SIZE:
        finer = Image.fromarray(x.clip(0, 255).astype(np.uint8)).resize(
            (2 * len(x), 2 * len(x)), Image.Resampling.BICUBIC
        )
        x = np.asarray(finer).astype(int)
        x += rng.integers(-900, 901, x.shape) // len(x)
    file = io.BytesIO()
    Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


class SmoothJpegs(tfds.core.GeneratorBasedBuilder):
    """TFDS knows it as smooth_jpegs, once this module is imported."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg")
        label = tfds.features.ClassLabel(num_classes=CLASSES)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        with ThreadPoolExecutor() as pool:
            for number, file in enumerate(pool.map(jpeg, range(COUNT))):
                yield number, {"image": io.BytesIO(file), "label": number % CLASSES}
