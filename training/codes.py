"""A first stage's codes, or its latents, as the data of a second stage.

    codes     x = the codes of an image in the order of models/codec.py, T of them; tokens, on a grid where it is one
    latents   x = (z − mean)/std, z what the bottleneck is given [h, w, D]; mean and std of each of the D over all
              training images                                                                      2112.10752 app. G

A finished run of a first stage is named, its averaged parameters encode every image once, and what they made lies in
RUN/codes with the digest of what made it. A second stage's `config.json` has the digest, too: codes mean nothing to
another codebook, nor to the same one a training later, and both are refused.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Integer

from data.dataset import Arrays, Dataset, Source, is_test
from data.encoded import Encoded
from data.npz import Like, read_npz, write_npz
from models.codec import Codec
from models.model import Variables
from training.errors import UserError
from training.handover import Finished, finished
from training.lock import alone
from training.mesh import Mesh

FLAG = "--data.codes"
BATCH = 256  # images encoded or decoded at once
CHUNK = 8192  # images read at once


@dataclass(frozen=True)
class FirstStage:
    """A finished run of a codec, ready to encode and decode."""

    run: Finished
    model: Codec

    @property
    def images(self) -> Dataset:
        return self.run.experiment.data

    @property
    def digest(self) -> str:
        """Of the checkpoint: parameters, codebook and all."""
        return self.run.state_digest

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image."""
        return self.images.shape

    def latent_shape(self) -> tuple[int, ...]:
        x = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        return jax.eval_shape(self.model.latents, self.run.shapes(), x).shape[1:]

    def over(self, function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        """`function(variables, *batch)` in equal batches, jitted once, on the host."""
        size, n = min(BATCH, len(arrays[0])), len(arrays[0])
        jitted = jax.jit(function)
        variables = _variables(self)
        parts = []
        for first in range(0, n, size):
            rows = np.minimum(np.arange(first, first + size), n - 1)  # the last batch is padded: one compilation
            parts.append(jax.device_get(jitted(variables, *(array[rows] for array in arrays))))
        return np.concatenate(parts)[:n]


@lru_cache(maxsize=4)
def _first_stage(folder: str, changed: int) -> FirstStage:
    run = finished(FLAG, folder)
    model = run.model
    if not isinstance(model, Codec):
        raise UserError(f"{FLAG} {folder}: codes are a VQVAE's or VQVAE2's, not a {type(model).__name__}'s")
    return FirstStage(run, model)


@lru_cache(maxsize=4)
def _variables(stage: FirstStage) -> Variables:
    return stage.run.averaged(Mesh().build(local=True))


@dataclass(frozen=True, kw_only=True)
class _OfFirstStage(Encoded):
    """What codes and latents share."""

    codes: str  # folder of a finished run of a first stage; what it makes is kept in it
    made_of: str = ""  # digest of the checkpoint; empty: whatever is there, which the run's own config.json then names

    def __post_init__(self) -> None:
        if self.made_of and len(self.made_of) != 64:
            raise ValueError(f"made_of={self.made_of!r} is no digest of a checkpoint")

    @property
    def stage(self) -> FirstStage:
        """The first stage.

        Raises:
          UserError: there is none, it is not finished, or it is not the one that this was made of.
        """
        summary = Path(self.codes) / "summary.json"
        stage = _first_stage(self.codes, summary.stat().st_mtime_ns if summary.is_file() else 0)
        if self.made_of and self.made_of != stage.digest:
            raise UserError(
                f"{FLAG} {self.codes}: this run was trained on what another checkpoint made (digest "
                f"{self.made_of[:12]}; there is {stage.digest[:12]} now). Its first stage has been trained anew, and "
                "what this one has learned means nothing to the new one: train this, too, anew"
            )
        return stage

    @property
    def pictured(self) -> Dataset:
        return self.stage.images

    @property
    def num_classes(self) -> int:
        return self.pictured.num_classes

    @property
    def open_set(self) -> bool:
        return self.pictured.open_set

    @property
    def runs(self) -> tuple[str, ...]:
        return (self.codes, *self.pictured.runs)

    @property
    def made_by(self) -> str:
        return self.stage.digest

    def pinned(self) -> Any:
        return replace(self, made_of=self.stage.digest)

    def source(self, split: str) -> Source:
        is_test(split)
        return EncodedSource(self, self.pictured.source(split), split)

    def prepare(self) -> None:
        """Encodes the training split, if that has not been done."""
        self.encoded("train")

    def encoded(self, split: str) -> Arrays:
        """All of a split, with the labels of its images, from RUN/codes where it is there.

        Raises:
          UserError: what is there was made by another checkpoint, or cannot be read.
        """
        return _encoded(self, split, self.stage)

    @property
    def kind(self) -> str:
        """What the files in RUN/codes are called."""
        return type(self).__name__.lower()

    def like(self, stage: FirstStage) -> Like:
        """What a file in RUN/codes may hold."""
        of_images = {name: ((None, *a.shape[1:]), a.dtype) for name, a in stage.images.zeros(1).items()}
        return {**of_images, "x": self.stored(stage), "made_by": ((), np.asarray(stage.digest).dtype)}

    @abstractmethod
    def stored(self, stage: FirstStage) -> tuple[tuple[int | None, ...], np.dtype]:
        """Shape and type of what is kept, of any number of images."""

    @abstractmethod
    def make(self, stage: FirstStage, x: Float[np.ndarray, "n h w c"]) -> np.ndarray:
        """Of images, what is kept."""

    @abstractmethod
    def model_space(self, x: np.ndarray) -> np.ndarray:
        """Of what is kept, the examples' `x`."""


@lru_cache(maxsize=4)
def _encoded(data: _OfFirstStage, split: str, stage: FirstStage) -> Arrays:
    path = Path(data.codes) / "codes" / f"{data.kind}_{split}.npz"
    if path.is_file():
        return _read(path, data, stage)
    path.parent.mkdir(exist_ok=True)
    with alone(path.parent):
        return _read(path, data, stage) if path.is_file() else _make(path, data, split, stage)


def _make(path: Path, data: _OfFirstStage, split: str, stage: FirstStage) -> Arrays:
    if jax.process_count() > 1:  # each would write the same file, and wait for another's devices
        raise UserError(f"{path} is made by one process: train or sample with {FLAG} on one host first")
    source = stage.images.source(split)
    print(f"encoding {len(source)} images of the {split} split with {data.codes}", flush=True)
    rows = [np.arange(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK)]
    parts: list[Arrays] = []
    for some in rows:
        batch = source.read(some, -1, some)
        parts.append({**batch, "x": data.make(stage, batch["x"])})
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_npz(path, {**arrays, "made_by": stage.digest})
    return arrays


def _read(path: Path, data: _OfFirstStage, stage: FirstStage) -> Arrays:
    try:
        arrays = read_npz(path, data.like(stage))
        maker = str(arrays.pop("made_by"))
        if len({len(array) for array in arrays.values()}) != 1 or "x" not in arrays:
            raise ValueError("it has no x, or not as many of all arrays")
    except Exception as error:  # zipfile raises many kinds
        raise UserError(f"{path} cannot be read ({error}); delete it, and it is made again") from error
    if maker != stage.digest:
        raise UserError(
            f"{path} was made by another checkpoint or codebook (digest {maker[:12]}) than the one in "
            f"{stage.run.folder} ({stage.digest[:12]}); delete it, and it is made again"
        )
    return arrays


@dataclass(frozen=True)
class EncodedSource(Source):
    """A split. Nothing is encoded before the first record is read."""

    data: _OfFirstStage
    images: Source
    split: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        batch = {name: value[records] for name, value in self.data.encoded(self.split).items()}
        return {**batch, "x": self.data.model_space(batch["x"])}


@dataclass(frozen=True, kw_only=True)
class Codes(_OfFirstStage):
    """x is tokens [T], a code each."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stage.model.length(self.stage.shape),)

    @property
    def vocabulary(self) -> int:
        return self.stage.model.codes

    @property
    def grid(self) -> tuple[int, int] | None:
        return self.stage.model.grid(self.stage.shape)

    def stored(self, stage: FirstStage) -> tuple[tuple[int | None, ...], np.dtype]:
        return (None, stage.model.length(stage.shape)), np.min_scalar_type(stage.model.codes)

    def make(self, stage: FirstStage, x: Float[np.ndarray, "n h w c"]) -> Integer[np.ndarray, "n t"]:
        return stage.over(stage.model.encode, x).astype(np.min_scalar_type(stage.model.codes))

    def model_space(self, x: np.ndarray) -> Int[np.ndarray, "n t"]:
        return x.astype(np.int32)

    def shown(self, x: Integer[np.ndarray, "n t"]) -> Float[np.ndarray, "n h w c"]:
        """Images.

        Raises:
          ValueError: a code is out of range.
        """
        stage = self.stage
        wrong = x[(x < 0) | (x >= stage.model.codes)]
        if wrong.size:
            raise ValueError(f"code {wrong[0]} is out of range: those of {self.codes} are 0 to {stage.model.codes - 1}")
        return stage.over(lambda v, codes: stage.model.decode(v, codes, stage.shape), x.astype(np.int32))

    def log_prob_of_images(self, split: str, limit: int) -> Float[np.ndarray, " n"]:
        stage = self.stage
        return stage.over(stage.model.log_prob, self.arrays(split, limit)["x"], self.pictured.arrays(split, limit)["x"])


@dataclass(frozen=True, kw_only=True)
class Latents(_OfFirstStage):
    """x is latents [h, w, D], centred and scaled."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stage.latent_shape()

    def stored(self, stage: FirstStage) -> tuple[tuple[int | None, ...], np.dtype]:
        return (None, *stage.latent_shape()), np.dtype(np.float32)

    def make(self, stage: FirstStage, x: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n rows columns d"]:
        return stage.over(stage.model.latents, x)

    def model_space(self, x: Float[np.ndarray, "n rows columns d"]) -> Float[np.ndarray, "n rows columns d"]:
        mean, std = self._scale()
        return (x - mean) / std

    def shown(self, x: Float[np.ndarray, "n rows columns d"]) -> Float[np.ndarray, "n h w c"]:
        stage = self.stage
        mean, std = self._scale()
        z = (x * std + mean).astype(np.float32)
        return stage.over(lambda v, z: stage.model.from_latents(v, z, stage.shape), z)

    def log_prob_of_images(self, split: str, limit: int) -> Float[np.ndarray, " n"]:
        raise ValueError("a density of continuous latents is no probability of images: there is no one number of both")

    def _scale(self) -> Float[np.ndarray, "2 1 1 1 d"]:
        return _moments(self, self.stage)


@lru_cache(maxsize=4)
def _moments(data: Latents, stage: FirstStage) -> Float[np.ndarray, "2 1 1 1 d"]:
    """Mean and standard deviation of each number, over all places of all training images."""
    x = data.encoded("train")["x"].astype(np.float64)
    moments = np.stack([f(x, axis=(0, 1, 2), keepdims=True) for f in (np.mean, np.std)])
    moments[1] = np.maximum(moments[1], 1e-6)  # a number that never varies
    return moments.astype(np.float32)
