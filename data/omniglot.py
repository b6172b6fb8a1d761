"""Omniglot as an open set: characters of some alphabets to train on, characters of others to be told apart.

    (1)  class of a drawing turned by k quarters = c + k·C        c its character, C characters, k = 0 … 3
    (2)  training example n is moved by (Δ_y, Δ_x), each uniform on −s … s, drawn for (seed, n) alone; what comes in
         at the border is paper, x = 1: the strokes are black

Omniglot is Lake, Salakhutdinov and Tenenbaum, Science 2015; quarter turns as classes are of 1605.06065.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from data.arrays import ArraySource
from data.dataset import Arrays, Dataset, Source, is_test
from data.drawn import DrawnSource
from data.pixels import decode, to_model_space
from data.tfds import open_split

PAPER = 1.0
PARTS = {"train": "small1", "test": "small2"}  # as TFDS calls them: five alphabets each, two of them in both


@lru_cache(maxsize=2)
def _drawings(split: str) -> tuple[list[bytes], Int[np.ndarray, " n"]]:
    """A split's files and their labels 0 … C − 1."""
    import tensorflow_datasets as tfds

    def read(part: str) -> tuple[list[bytes], np.ndarray, np.ndarray]:
        records = open_split("omniglot", part, decoders={"image": tfds.decode.SkipDecoding()})
        examples = records.__getitems__(list(range(len(records))))
        label, alphabet = (np.asarray([example[name] for example in examples]) for name in ("label", "alphabet"))
        return [example["image"] for example in examples], label, alphabet

    files, label, alphabet = read(PARTS[split])
    if split == "test":  # a class is new only if its alphabet is
        kept = np.flatnonzero(~np.isin(alphabet, read(PARTS["train"])[2]))
        files, label = [files[i] for i in kept], label[kept]
    return files, np.unique(label, return_inverse=True)[1]


@lru_cache(maxsize=4)
def _source(split: str, size: int, rotations: bool) -> ArraySource:
    files, label = _drawings(split)
    pixels = np.stack([decode(file, channels=1, size=size) for file in files])
    if rotations:  # eq. (1)
        classes = label.max() + 1
        pixels = np.concatenate([np.rot90(pixels, k, axes=(1, 2)) for k in range(4)])
        label = np.concatenate([label + k * classes for k in range(4)])
    return ArraySource(pixels, label, to_model_space)


@dataclass(frozen=True)
class Shifts:
    """Where drawings are moved to."""

    most: int

    def draw(self, rng: np.random.Generator, n: int) -> Arrays:
        return {"shift": rng.integers(-self.most, self.most + 1, (n, 2))}


def shifted(x: Float[np.ndarray, "b h w c"], shift: Int[np.ndarray, "b 2"]) -> Float[np.ndarray, "b h w c"]:
    """Each image moved down and to the right by its own numbers of pixels, up or left where they are negative."""
    most = int(np.abs(shift).max(initial=0))
    padded = np.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=PAPER)
    rows = most - shift[:, :1] + np.arange(x.shape[1])[None]
    columns = most - shift[:, 1:] + np.arange(x.shape[2])[None]
    return padded[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclass(frozen=True)
class ShiftedSource(Source):
    """Another set's images, moved as eq. (2) says."""

    images: Source
    shifts: Shifts

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        batch = self.images.read(records, seed, numbers)
        if seed < 0:
            return batch
        drawn = DrawnSource(self.shifts, test=False).read(records, seed, numbers)
        return {**batch, "x": shifted(batch["x"], drawn["shift"])}


@dataclass(frozen=True, kw_only=True)
class OmniglotOpenSet(Dataset):
    """Drawings [size, size, 1] in [−1, 1], 20 a character: 136 characters to train on, 106 of other alphabets held out.

    Both splits number their labels from 0, and no class is in both.
    """

    size: int = 28  # of the drawings' 105 pixels
    rotations: bool = False  # a training character's quarter turns are classes of their own, four times as many
    shift: int = 0  # move each training drawing by up to so many pixels up or down, and left or right

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} is not positive")
        if not 0 <= self.shift < self.size:
            raise ValueError(f"shift={self.shift} is not between 0 and size={self.size}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, 1)

    @property
    def num_classes(self) -> int:
        """Of the training split."""
        return (int(_drawings("train")[1].max()) + 1) * (4 if self.rotations else 1)

    @property
    def bin_width(self) -> float:
        """As of all 8-bit images: what is made smaller has grey levels, though the files are 1-bit."""
        return 2.0 / 255.0

    @property
    def open_set(self) -> bool:
        return True

    def source(self, split: str) -> Source:
        test = is_test(split)
        source = _source(split, self.size, self.rotations and not test)
        return ShiftedSource(source, Shifts(self.shift)) if self.shift and not test else source
