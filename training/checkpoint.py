"""Checkpoints by orbax: asynchronous, atomic, state and data position together: the step is both.

A checkpoint holds three items: `average` (averaged parameters and model state, all that sampling needs), `train`
(the rest of the state) and `progress` (seconds trained, last loss and the like).
"""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from training.distributed import agreed, once
from training.errors import UserError
from training.experiment import Checkpoints
from training.state import TrainState

T = TypeVar("T")
ITEMS = ("average", "train", "progress")
# Typed loosely: orbax states these as protocols that its own members do not quite meet.
keeping: Any = ocp.training.preservation_policies
saving: Any = ocp.training.save_decision_policies


class OtherArraysError(UserError):
    """A checkpoint is whole, and is not of this experiment."""


class Store:
    """The checkpoints of one run folder. Without `keep` it only reads, and may do so beside the process that trains."""

    def __init__(self, workdir: Path, keep: Checkpoints | None = None) -> None:
        # orbax's threads log each failure with a traceback, and asyncio what they leave undone when they fail; what
        # fails reaches the caller as an exception all the same.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # … and says this after a load that failed.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        self.folder = workdir / "checkpoints"
        rules: list[Any] = [keeping.LatestN(keep.latest if keep else None)]
        if keep and keep.keep_every:
            rules.append(keeping.EveryNSteps(keep.keep_every))
        # Each item's reader by its name: a checkpoint's own metadata could ask for another.
        readers, self._context = ocp.handlers.local_registry(), ocp.Context()
        for item in ITEMS:
            readers.add(ocp.handlers.PyTreeHandler, checkpointable_name=item)
        self._context.checkpointables.registry = readers
        try:
            self._checkpointer = ocp.training.Checkpointer(
                str(self.folder.resolve()),
                context=self._context,
                preservation_policy=keeping.AnyPreservationPolicy(rules),
                # Saves are decided by the training loop alone.
                save_decision_policy=saving.FixedIntervalPolicy(1),
                # Half-written saves of a killed run are removed, but not by a reader: they may be another process's.
                cleanup_tmp_directories=keep is not None,
            )
        except OSError:
            raise
        except Exception as error:  # of metadata that orbax did not write, which it reads here
            raise UserError(f"{self.folder} holds what is no checkpoint ({_first_line(error)})") from error

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Begins a save; waits only for the one before and for the copy off the device."""
        train = _trained(state)
        items = {"average": {"params": state.average, "state": state.model}, "train": train, "progress": progress}
        self._checkpointer.save_checkpointables_async(int(state.step), items, force=True)

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
          OSError: it could not be written.
        """
        self._checkpointer.wait()

    def close(self) -> None:
        """Ends the background threads. A save that failed has been reported by `wait`, and is not reported again."""
        with contextlib.suppress(Exception):
            self._checkpointer.close()

    def restore(self, like: TrainState, before: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest readable checkpoint, laid out as `like` (shapes, dtypes, shardings); None if there is none.

        Args:
          before: only those of earlier steps, and none is moved.

        Raises:
          UserError: there are some, and none can be read.
          OtherArraysError: the newest has other arrays than `like`.
        """
        train = _trained(like)
        average = {"params": like.average, "state": like.model}

        def load(step: int) -> tuple[TrainState, dict[str, Any]]:
            self._check(step, "average", average)
            self._check(step, "train", train)
            items = {"average": average, "train": train, "progress": _scalars(self._stored(step, "progress"))}
            found = self._checkpointer.load_checkpointables(step, items)
            state = TrainState(
                step=found["train"]["step"],
                params=found["train"]["params"],
                average=found["average"]["params"],
                optimizer=found["train"]["optimizer"],
                model=found["average"]["state"],
                scaling=found["train"].get("scaling"),
            )
            return state, jax.tree.map(lambda leaf: leaf if isinstance(leaf, str) else leaf.item(), found["progress"])

        steps = [step for step in self.steps() if before is None or step < before]
        return self._newest(load, steps, set_aside=before is None)

    def restore_average(self, like: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Averaged parameters and model state of the newest readable checkpoint, and its step.

        Raises:
          UserError: there is none.
        """

        def load(step: int) -> tuple[dict[str, Any], int]:
            self._check(step, "average", like)
            return self._checkpointer.load_checkpointables(step, {"average": like})["average"], step

        found = self._newest(load, self.steps(), set_aside=False)
        if found is None:
            raise UserError(f"{self.folder.parent} holds no checkpoint yet")
        return found

    def _stored(self, step: int, item: str) -> Any:
        """What an item's metadata says of its leaves; none of them is read. Nothing, where it cannot be read itself."""
        with self._context:
            return ocp.metadata(str(self.folder.resolve() / str(step)), checkpointable_name=item).metadata

    def _check(self, step: int, item: str, like: Any) -> None:
        """Before an array is read, for which memory is allocated as its own metadata asks: is it what is expected?

        Raises:
          OtherArraysError: it is another; names the first.
          ValueError: it is not there.
        """
        there, here = _by_name(self._stored(step, item)), _by_name(like)
        for name in sorted(there.keys() & here.keys()):
            if there[name] != here[name]:
                raise OtherArraysError(
                    f"checkpoint {step} in {self.folder} is of another experiment: {item}.{name} is {there[name]} "
                    f"there and {here[name]} here"
                )
        if there.keys() != here.keys():
            name = min(there.keys() ^ here.keys())
            raise ValueError(f"its {item} cannot be read, or is another experiment's: {name} is in one of them alone")

    def _newest(self, load: Callable[[int], T], steps: list[int], set_aside: bool) -> T | None:
        damaged = []
        for step in reversed(steps):
            found, failed, reason = None, False, "another process cannot read it"
            try:
                found = load(step)
            except OtherArraysError:  # no damage, which a checkpoint before it could be spared
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds, none of them promised
                failed, reason = True, _first_line(error)
            if not agreed(not failed):  # one process that goes on from another step would leave the others waiting
                print(f"warning: checkpoint {step} cannot be read ({reason}); trying the one before", flush=True)
                damaged.append(step)
                continue
            # Only now: where none can be read the fault may lie elsewhere, and all of them stay in their place.
            if set_aside and damaged:
                once(lambda: self._set_aside(damaged))
                self._checkpointer.reload()
            return found
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self.folder} can be read; --restart starts over")
        return None

    def _set_aside(self, damaged: list[int]) -> None:
        """Moves damaged checkpoints out of the way of those that will be saved at their steps again."""
        target = self.folder.parent / "damaged"
        target.mkdir(exist_ok=True)
        for step in damaged:
            shutil.rmtree(target / str(step), ignore_errors=True)
            shutil.move(self.folder / str(step), target / str(step))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _trained(state: TrainState) -> dict[str, Any]:
    """What training alone goes on with."""
    train = {"step": state.step, "params": state.params, "optimizer": state.optimizer}
    return train if state.scaling is None else train | {"scaling": state.scaling}


def _by_name(tree: Any) -> dict[str, str]:
    """The type and shape of each leaf, and of its chunks where they are larger: they are read whole."""

    def told(leaf: Any) -> str:
        if not hasattr(leaf, "shape"):
            return type(leaf).__name__
        storage = getattr(leaf, "storage_metadata", None)
        chunk = tuple(storage.chunk_shape or leaf.shape) if storage else leaf.shape
        larger = f" in chunks of {list(chunk)}" if any(c > max(n, 1) for c, n in zip(chunk, leaf.shape)) else ""  # noqa: B905
        return f"{leaf.dtype}{list(leaf.shape)}{larger}"

    return {
        jax.tree_util.keystr(path, simple=True, separator="."): told(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _scalars(stored: Any) -> Any:
    """What the leaves of `progress` are read as: strings, and numbers as arrays of the shape [], which orbax checks."""
    if not jax.tree.leaves(stored):  # orbax would take it for leave to load whatever is there
        raise ValueError("its progress cannot be read")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def like(leaf: Any) -> Any:
        if not isinstance(leaf, str | int | float):
            raise ValueError(f"its progress holds a {type(leaf).__name__}")
        dtype = jax.numpy.int32 if isinstance(leaf, int) else jax.numpy.float32
        return leaf if isinstance(leaf, str) else jax.ShapeDtypeStruct((), dtype, sharding=device)

    return jax.tree.map(like, stored)
