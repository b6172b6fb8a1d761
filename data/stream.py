"""The batches of a run, one after the other, read ahead by threads of this process or by processes of their own.

A batch is a pure function of its number, so readers have no state: whoever reads, from whatever batch on, in whatever
number, the batches are the same, and the place of a reader that died is taken by another.
"""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, SupportsIndex

import grain
import numpy as np
from absl import flags

from data.dataset import Arrays, Batches, ReadError

# What is likely where a process was ended from outside and could not say why.
LIKELY = {
    signal.SIGKILL: ", as where memory runs out",
    signal.SIGBUS: ", as where there is too little shared memory (/dev/shm)",
}


class Stream:
    """Iterator over `batches`: `next` gives batch number `position`, and counts up.

    With `workers`, so many processes read, through grain's `mp_prefetch`. They are spawned, hand arrays over in shared
    memory and are each a few batches ahead. grain looks after them every second while it waits for one: a worker that
    died is told in a line on standard output, and others start from `position`. Without, `source.threads` threads of
    this process read; none, for records in memory.

    Nothing is read before the first `next`: records that are made and not read may not be there yet.

    Args:
      position: number of the first batch.
      workers: how many processes read.
    """

    def __init__(self, batches: Batches, position: int = 0, workers: int = 0) -> None:
        self._position = position
        self._batches = batches
        self._workers = workers
        self._running: list[Any] = []  # grain's iterator, once there is one
        self._died_before: int | None = None  # the batch that was awaited when a worker last died
        weakref.finalize(self, _end, self._running)  # at the latest when Python ends

    @property
    def position(self) -> int:
        """Number of the next batch."""
        return self._position

    def __next__(self) -> Arrays:
        """The next batch.

        Raises:
          ReadError: it could not be read, or twice the worker died that was to. The stream still stands before it.
        """
        try:
            batch = next(self._running[0]) if self._running else self._first()
        except Exception as error:
            self.close()
            status = re.search(r"exit code (-?\d+)", str(error)) if self._workers else None
            if status is None:
                raise self._failure(error) from error
            self._died(_told(int(status[1])))
            return next(self)
        except BaseException:  # Ctrl-C, and a batch may be lost that had been taken from grain
            self.close()
            raise
        if isinstance(batch, _Failed):
            self.close()
            raise self._failure(batch.error) from batch.error
        self._position += 1
        # Out of shared memory, of which there is little, and which must be given back before Python ends: who is given
        # an array, the caller or jax, may hold it for as long as that.
        return {name: np.array(value) for name, value in batch.items()} if self._workers else batch

    def close(self) -> None:
        """Ends threads and processes. `next` would start others, from `position` on."""
        _end(self._running)

    def _first(self) -> Any:
        if not self._workers and not self._batches.source.threads:
            return self._batches[self._position]
        if not self._workers:
            self._running.append(self._threads())
            return next(self._running[0])
        self._running.append(self._processes())
        with _deaf():  # grain starts them here
            return next(self._running[0])

    def _threads(self) -> Any:
        threads = self._batches.source.threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        source: Any = self._batches  # grain asks for a class of its own where the two methods are enough
        iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        iterator.set_state({"next_index": self.position})
        return iterator

    def _processes(self) -> Any:
        if not flags.FLAGS.is_parsed():  # grain asks for some of absl's, and our scripts have none
            flags.FLAGS.mark_as_parsed()
        source: Any = _Guarded(self._batches)
        here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        ahead = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
        left = grain.MapDataset.source(source)[self.position :].to_iter_dataset(here)
        return iter(left.mp_prefetch(ahead, worker_init_fn=_settle))

    def _failure(self, error: Exception) -> ReadError:
        return ReadError(f"batch {self.position} could not be read: {str(error).strip() or type(error).__name__}")

    def _died(self, how: str) -> None:
        if self._died_before == self.position:
            raise ReadError(f"batch {self.position} could not be read: a data worker died twice before it came ({how})")
        self._died_before = self.position
        print(f"warning: a data worker died ({how}); its place is taken from batch {self.position} on", flush=True)


def _end(running: list[Any]) -> None:
    while running:
        running.pop().close()


@dataclass(frozen=True)
class _Failed:
    """Stands where a batch would, in a worker that could not read it."""

    error: Exception


@dataclass(frozen=True)
class _Guarded:
    """Batches as workers read them."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: SupportsIndex) -> Arrays | _Failed:
        try:
            # What is not in one piece would go through a pipe, and not through shared memory.
            return {name: np.ascontiguousarray(value) for name, value in self.batches[position].items()}
        except Exception as error:
            return _Failed(_sent(error))


def _sent(error: Exception) -> Exception:
    """The error, or its text where it would not get through to the other process, which would wait for it for ever."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own class makes of being pickled
        return RuntimeError(f"{type(error).__name__}: {error}")


def _told(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    number = signal.Signals(-status)
    return number.name + LIKELY.get(number, "")


def _settle(index: int, workers: int) -> None:
    """Before a worker reads: it leaves Ctrl-C to its parent and accelerators alone, and does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # grain imports it; no device is looked for before one is used
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # it ends its workers; what is killed does not
        os._exit(1)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started within are born deaf to Ctrl-C: they could not ignore it before they have imported this."""
    resource_tracker.ensure_running()  # its start would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
