"""What tests run in processes of their own, in a module that is imported at once."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from data.dataset import Arrays, Source
from training.lock import alone


@dataclass(frozen=True)
class Numbers(Source):
    """Which records were read, by which process, and whether it may use a CPU alone."""

    size: int = 100

    def __len__(self) -> int:
        return self.size

    def read(self, records: np.ndarray, seed: int, numbers: np.ndarray) -> Arrays:
        platforms = sys.modules["jax"].config.jax_platforms if "jax" in sys.modules else "cpu"
        return {"x": records, "process": np.asarray([os.getpid()]), "on_cpu": np.asarray([platforms == "cpu"])}


@dataclass(frozen=True)
class Deadly(Numbers):
    """Whoever reads that example dies of it."""

    number: int = 0

    def read(self, records: np.ndarray, seed: int, numbers: np.ndarray) -> Arrays:
        if self.number in numbers:
            time.sleep(0.2)  # the batch before it is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(records, seed, numbers)


class TwoPartError(Exception):
    """Of the kind that cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Raising(Numbers):
    def read(self, records: np.ndarray, seed: int, numbers: np.ndarray) -> Arrays:
        raise TwoPartError("this", "that")


def hold(folder: Path, held: Event, until: Event) -> None:
    """Keeps others out of the folder from `held` on, until it is told."""
    with alone(folder):
        held.set()
        until.wait(30)
