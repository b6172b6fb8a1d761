"""Checkpoints by orbax: asynchronous, atomic, state and data position together.

A checkpoint holds three items: `average` (averaged parameters and model state, all that sampling needs), `train`
(the rest of the state) and `progress` (data position, seconds trained, last loss).
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

from training.errors import UserError
from training.experiment import Checkpoints
from training.state import TrainState

T = TypeVar("T")
# Typed loosely: orbax states these as protocols that its own members do not quite meet.
keeping: Any = ocp.training.preservation_policies
saving: Any = ocp.training.save_decision_policies


class Store:
    """The checkpoints of one run folder. Without `keep` it only reads, and may do so beside the process that trains."""

    def __init__(self, workdir: Path, keep: Checkpoints | None = None) -> None:
        # orbax's threads log each failure with a traceback; what fails reaches the caller as an exception all the same.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        # … and says this after a load that failed.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        self.folder = workdir / "checkpoints"
        rules: list[Any] = [keeping.LatestN(keep.latest if keep else None)]
        if keep and keep.keep_every:
            rules.append(keeping.EveryNSteps(keep.keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            str(self.folder.resolve()),
            preservation_policy=keeping.AnyPreservationPolicy(rules),
            # Saves are decided by the training loop alone.
            save_decision_policy=saving.FixedIntervalPolicy(1),
            # Half-written saves of a killed run are removed, but not by a reader: they may be another process's own.
            cleanup_tmp_directories=keep is not None,
        )

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

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest readable checkpoint, laid out as `like` (shapes, dtypes, shardings); None if there is none."""
        train = _trained(like)
        average = {"params": like.average, "state": like.model}

        def load(step: int) -> tuple[TrainState, dict[str, Any]]:
            items = {"average": average, "train": train, "progress": None}
            found = self._checkpointer.load_checkpointables(step, items)
            state = TrainState(
                step=found["train"]["step"],
                params=found["train"]["params"],
                average=found["average"]["params"],
                optimizer=found["train"]["optimizer"],
                model=found["average"]["state"],
                scaling=found["train"].get("scaling"),
            )
            _same_shapes(state, like)
            return state, found["progress"]

        return self._newest(load, set_aside=True)

    def restore_average(self, like: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Averaged parameters and model state of the newest readable checkpoint, and its step.

        Raises:
          UserError: there is none.
        """

        def load(step: int) -> tuple[dict[str, Any], int]:
            found = self._checkpointer.load_checkpointables(step, {"average": like})
            _same_shapes(found["average"], like)
            return found["average"], step

        found = self._newest(load, set_aside=False)
        if found is None:
            raise UserError(f"{self.folder.parent} holds no checkpoint yet")
        return found

    def _newest(self, load: Callable[[int], T], set_aside: bool) -> T | None:
        steps, damaged = self.steps(), []
        for step in reversed(steps):
            try:
                found = load(step)
            except Exception as error:  # orbax and tensorstore raise many kinds, none of them promised
                reason = str(error).strip().split("\n")[0][:200]
                print(f"warning: checkpoint {step} cannot be read ({reason}); trying the one before", flush=True)
                damaged.append(step)
                continue
            # Only now: where none can be read the fault may lie elsewhere, and all of them stay in their place.
            if set_aside:
                for bad in damaged:
                    self._set_aside(bad)
            return found
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self.folder} can be read; --restart starts over")
        return None

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of the one that will be saved at its step again."""
        target = self.folder.parent / "damaged"
        target.mkdir(exist_ok=True)
        shutil.rmtree(target / str(step), ignore_errors=True)
        shutil.move(self.folder / str(step), target / str(step))
        self._checkpointer.reload()


def _trained(state: TrainState) -> dict[str, Any]:
    """What training alone goes on with."""
    train = {"step": state.step, "params": state.params, "optimizer": state.optimizer}
    return train if state.scaling is None else train | {"scaling": state.scaling}


def _same_shapes(found: Any, like: Any) -> None:
    shape = lambda leaf: (tuple(leaf.shape), str(leaf.dtype))  # noqa: E731
    if jax.tree.map(shape, found) != jax.tree.map(shape, like):
        raise ValueError("its arrays have other shapes than the experiment's")
