"""Reflow: a finished run's samples, each with the noise it was drawn from, as the data of another run.

    (1)  xᵢ = ODE(εᵢ),  εᵢ ~ N(0, I)          the coupling that the teacher's own flow makes, 2209.03003 §2.1
    (2)  min_u E ‖u(xₜ, t) − (ε − x)‖²,  xₜ = (1 − t)·x + t·ε        2209.03003 §2.1, losses/flow_matching.py

A flow that is trained on the pairs of a flow crosses itself less, and is straighter. The teacher may have been trained
on pairs itself: the k-th repetition gives the paper's k-rectified flow.

Pair i comes from the key fold_in(named_key(seed, "pairs"), i) and, where the teacher is conditioned on classes, has
class i mod C. Pairs lie in RUN/pairs/DIGEST, whose name stands for all that decides them, in shards that are written
whole or not at all: generation goes on where it was killed, and more pairs extend what is there.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from data.dataset import Arrays, Dataset, MissingDataError, Source
from data.npz import read_npz, write_npz
from models.denoiser import Denoiser
from paths.grids import Uniform
from samplers.diffusion import Diffusion, first_noise
from samplers.heun import Heun
from samplers.sampler import sample_keys
from training import config
from training.draw import Drawer
from training.errors import UserError
from training.experiment import Experiment
from training.handover import Finished, finished
from training.inputs import default_condition
from training.lock import alone
from training.mesh import Mesh
from training.run import Run
from training.step import named_key

FLAG = "--data.teacher"
BATCH = 1024  # pairs drawn at once


def _sampler() -> Diffusion:
    return Diffusion(solver=Heun(), grid=Uniform(), steps=25)


@dataclass(frozen=True, kw_only=True)
class Reflow(Dataset):
    """Eq. (1): x, its `noise`, and `label` where the teacher has classes. The test split is the teacher's data's."""

    teacher: str  # folder of a finished run of a denoiser; the pairs are kept in it
    sampler: Diffusion = field(default_factory=_sampler)  # how the teacher draws; the solver must not draw noise
    pairs: int = 65_536  # how many, a multiple of `shard`; more than there are extends them
    shard: int = 8192  # pairs a file
    seed: int = 0  # of the pairs' noise

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.shard < 1 or self.pairs % self.shard:
            raise ValueError(f"pairs={self.pairs} is not a positive multiple of shard={self.shard}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed} is not in [0, 2^31)")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.original.shape

    @property
    def num_classes(self) -> int:
        return self._denoiser().num_classes

    @property
    def bin_width(self) -> float | None:
        """That of the teacher's data, which metrics are given."""
        return self.original.bin_width

    @property
    def original(self) -> Dataset:
        """The data set at the beginning of the chain of teachers."""
        data = self._experiment().data
        return data.original if isinstance(data, Reflow) else data

    @property
    def runs(self) -> tuple[str, ...]:
        return (self.teacher, *self._experiment().data.runs)

    @property
    def made_by(self) -> str:
        return self.folder(finished(FLAG, self.teacher)).name

    def zeros(self, size: int) -> Arrays:
        batch = super().zeros(size)
        return {**batch, "noise": np.zeros_like(batch["x"])}

    def source(self, split: str) -> Source:
        if split != "train":
            return self.original.source(split)
        self._check()
        return PairSource(self)

    def arrays(self, split: str, limit: int) -> Arrays:
        """Of the teacher's own data: metrics and pictures compare with what is real."""
        return self.original.arrays(split, limit)

    def prepare(self) -> None:
        """Draws the pairs that are not there.

        Raises:
          UserError: the teacher cannot be drawn from, or gives samples that are not finite.
        """
        run = finished(FLAG, self.teacher)
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            missing = [i for i in range(self.pairs // self.shard) if not self._is_there(folder, i)]
            if missing and jax.process_count() > 1:  # each would wait for another's devices
                raise UserError(f"pairs are drawn by one process: train a step with {FLAG} {self.teacher} on one first")
            if missing:
                config.write_whole(folder / "pairs.json", json.dumps(self._made_by(run), indent=2) + "\n")
                self._draw(run, folder, missing)

    def folder(self, run: Finished) -> Path:
        """Where the pairs of that run, drawn in this way, lie."""
        digest = hashlib.sha256(json.dumps(self._made_by(run), sort_keys=True).encode()).hexdigest()
        return run.folder / "pairs" / digest[:16]

    def read(self, folder: Path, index: int) -> Arrays:
        """A shard.

        Raises:
          ValueError, OSError, zipfile's own: it cannot be read, or is not of the shape that it must have.
        """
        like = {name: (array.shape, array.dtype) for name, array in self.zeros(self.shard).items()}
        found = read_npz(folder / name_of(index), like)
        if found.keys() != like.keys():
            raise ValueError(f"it holds {', '.join(found)}, not {', '.join(like)}")
        return found

    def _experiment(self) -> Experiment:
        try:
            return Run(Path(self.teacher)).experiment()
        except UserError as error:
            raise UserError(f"{FLAG} {self.teacher}: {error}") from error

    def _denoiser(self) -> Denoiser:
        model = self._experiment().resolved_model()
        if not isinstance(model, Denoiser):
            raise UserError(f"{FLAG} {self.teacher}: pairs are drawn from a Denoiser, not a {type(model).__name__}")
        return model

    def _check(self) -> None:
        """Traces the drawing of two pairs, so that a wrong setting fails before anything is computed."""
        if self.sampler.solver.stochastic:
            raise UserError(
                "--data.sampler.solver must draw no noise, so that a pair's own noise alone decides its sample; "
                f"{self.sampler.solver} does"
            )
        model, run = self._denoiser(), finished(FLAG, self.teacher)
        draw = lambda variables, keys, condition: self.sampler(model, variables, keys, condition, self.shape)  # noqa: E731
        keys = jax.random.split(jax.random.key(0), 2)
        try:
            jax.eval_shape(draw, run.shapes(), keys, default_condition(model, self, 2))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(f"--data.sampler cannot draw from {self.teacher}: {error}") from error

    def _made_by(self, run: Finished) -> dict[str, Any]:
        """All that decides a pair, as JSON values; their number is not among it."""
        made = {
            "config": config.encode(run.experiment),
            "step": run.experiment.steps,
            "state_digest": run.state_digest,
            "sampler": config.encode(self.sampler),
            "seed": self.seed,
            "shard": self.shard,
        }
        return json.loads(json.dumps(made))

    def _is_there(self, folder: Path, index: int) -> bool:
        try:
            self.read(folder, index)
        except FileNotFoundError:
            return False
        except Exception as error:  # zipfile raises many kinds
            print(f"warning: {folder / name_of(index)} cannot be read ({error}); drawing it again", flush=True)
            return False
        return True

    def _draw(self, run: Finished, folder: Path, missing: list[int]) -> None:
        # All devices of the one process that draws: samples do not depend on how many, but for rounding.
        model, mesh = self._denoiser(), Mesh().build(local=True)
        draw = Drawer(model, self.sampler, self.shape, mesh, min(BATCH, self.shard))
        variables, key = run.averaged(mesh), named_key(self.seed, "pairs")
        there = self.pairs // self.shard - len(missing)
        print(f"pairs: {there * self.shard} of {self.pairs} are in {folder}; drawing the others", flush=True)
        for done, index in enumerate(missing, there + 1):
            first, began = index * self.shard, time.perf_counter()
            condition = default_condition(model, self, self.shard, first)
            x = draw(variables, key, self.shard, condition, first=first).x
            if not np.isfinite(x).all():
                raise UserError(f"{self.teacher} gives samples that are not finite (among pair {first} and the next)")
            arrays = {"x": x, "noise": np.asarray(noise_of(key, first + jnp.arange(self.shard), self.shape))}
            if condition is not None:
                arrays["label"] = np.asarray(condition["label"])
            write_npz(folder / name_of(index), arrays)
            rate = self.shard / (time.perf_counter() - began)
            print(f"pairs: {done * self.shard} of {self.pairs}, {rate:.0f} a second", flush=True)


@partial(jax.jit, static_argnums=2)
def noise_of(key: Key[Array, ""], indices: Int[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "n *shape"]:
    """The ε that the samples of those numbers are drawn from."""
    return first_noise(sample_keys(key, indices), shape)


@dataclass(frozen=True)
class PairSource(Source):
    """The pairs in memory, read when the first batch is: a source may be had before they are drawn."""

    data: Reflow

    @cached_property
    def arrays(self) -> Arrays:
        folder = self.data.folder(finished(FLAG, self.data.teacher))
        try:
            shards = [self.data.read(folder, i) for i in range(self.data.pairs // self.data.shard)]
        except FileNotFoundError as error:
            raise MissingDataError(f"{error.filename} is not there: train.py draws pairs before it trains") from error
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def __len__(self) -> int:
        return self.data.pairs

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        return {name: values[records] for name, values in self.arrays.items()}


def name_of(index: int) -> str:
    """A shard's file."""
    return f"{index:05d}.npz"
