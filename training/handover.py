"""What one run hands to another: a finished run's averaged parameters, where a new run begins.

    --initial RUN   become the first parameters, and the first average; with them go a flow's constants
    --teacher RUN   become those of the model's own teacher, `variables["state"]["teacher"]` (models/jump.py)

A run that is resumed is handed nothing: its own checkpoint has all of it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from models.model import Model, Variables
from training import config
from training.checkpoint import Store
from training.errors import UserError
from training.experiment import Experiment
from training.inputs import example_batch, shapes_of
from training.mesh import Mesh
from training.run import Run
from training.state import TrainState

KEPT = ("constants",)  # of the model's state: what parameters are meaningless without (models/flows/flow.py)
NO_MATTER = ("dtype", "remat", "dropout")  # settings of a net in which a teacher may differ from the run it comes from


@dataclass(frozen=True)
class Finished:
    """A run that has taken all its steps. `flag` is what named it on the command line."""

    flag: str
    folder: Path
    experiment: Experiment
    state_digest: str

    @property
    def model(self) -> Model:
        return self.experiment.resolved_model()

    def shapes(self) -> Variables:
        """Shapes of the model's variables."""
        return shapes_of(self.model, example_batch(self.experiment))

    def averaged(self, mesh: jax.sharding.Mesh, fsdp_from: int = Mesh.fsdp_from) -> Variables:
        """The averaged parameters of the last step, on a mesh.

        Raises:
          UserError: they cannot be read.
        """
        variables, step = Run(self.folder).averaged(self.model, example_batch(self.experiment), mesh, fsdp_from)
        if step != self.experiment.steps:
            raise unfinished(self.flag, self.folder, step, self.experiment.steps)
        return variables


def finished(flag: str, folder: str) -> Finished:
    """The run in a folder.

    Raises:
      UserError: there is none, or it has not taken all its steps.
    """
    path = Path(folder)
    try:
        experiment = Run(path).experiment()
    except UserError as error:
        raise UserError(f"{flag} {folder}: {error}") from error
    steps = []
    if (path / "checkpoints").is_dir():
        store = Store(path)
        steps = store.steps()
        store.close()
    try:
        digest = config.read_json(path / "summary.json")["state_digest"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or what is no summary
        digest = None
    at = steps[-1] if steps else 0
    if not isinstance(digest, str) or not steps or at < experiment.steps:
        raise unfinished(flag, path, at, experiment.steps)
    return Finished(flag, path, experiment, digest)


def unfinished(flag: str, folder: Path, step: int, steps: int) -> UserError:
    where = f"stands at step {step} of {steps}" if step < steps else "is trained, but has no summary.json yet"
    return UserError(
        f"{flag} {folder}: this run {where}; the command that began it finishes it: "
        f"python train.py EXPERIMENT --workdir {folder}"
    )


@dataclass(frozen=True)
class Handover:
    """What a run is handed before its first step."""

    initial: Finished | None = None
    teacher: Finished | None = None

    @classmethod
    def of(cls, experiment: Experiment, model: Model, shapes: TrainState) -> "Handover":
        """What `experiment` asks for.

        Args:
          model: the experiment's, resolved.
          shapes: of the state before the first step.

        Raises:
          UserError: it does not fit, or the run is not finished.
        """
        initial = finished("--initial", experiment.initial) if experiment.initial else None
        if initial:
            _same_shapes(initial, shapes.params)
        own = getattr(model, "teacher", None)
        if own is not None and not experiment.teacher:
            raise UserError("a teacher needs a run: the model has a teacher, name the run it comes from, --teacher RUN")
        if not experiment.teacher:
            return cls(initial)
        if own is None:
            raise UserError(
                f"--teacher {experiment.teacher}: this experiment's {type(model).__name__} has no teacher "
                "(model.teacher, the run's model) that could be given its parameters"
            )
        teacher = finished("--teacher", experiment.teacher)
        # Also what leaves the shapes alone: the wrong path or face would read the right parameters wrongly.
        changed = config.differences(config.encode(teacher.model), config.encode(own))
        changed = [line for line in changed if line.partition(":")[0].split(".")[-1] not in NO_MATTER]
        if changed:
            raise UserError(
                f"--teacher {teacher.folder}: --model.teacher must be that run's model; {'; '.join(changed)}"
            )
        _same_shapes(teacher, shapes.model["teacher"])
        return cls(initial, teacher)

    def into(self, state: TrainState, mesh: jax.sharding.Mesh, fsdp_from: int = Mesh.fsdp_from) -> TrainState:
        """A fresh state with what is handed over; on the mesh, as it was.

        Raises:
          UserError: the parameters cannot be read.
        """
        if self.initial:
            found = self.initial.averaged(mesh, fsdp_from)
            params, kept = found["params"], {name: found["state"][name] for name in KEPT if name in found["state"]}
            # A copy: donating a state whose two leaves are one buffer is an error.
            average = jax.tree.map(jnp.copy, params)
            state = replace(state, params=params, average=average, model={**state.model, **kept})
        if self.teacher:
            state = replace(state, model={**state.model, "teacher": self.teacher.averaged(mesh, fsdp_from)["params"]})
        return state


def _same_shapes(run: Finished, like: Any) -> None:
    """Raises a UserError that names the first parameter in which the run differs from `like`, and how."""
    there, here = _by_name(run.shapes()["params"]), _by_name(like)
    differ = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if differ:
        name = differ[0]
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise UserError(
            f"{run.flag} {run.folder}: its parameters do not fit this model's: {name} is "
            f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} here{more}"
        )


def _by_name(params: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def check_folder(experiment: Experiment, folder: Path) -> None:
    """Refuses to train over a run that this one comes from.

    Raises:
      UserError: `folder` is one of them.
    """
    for run in (experiment.initial, experiment.teacher, *experiment.data.runs):
        if run and Path(run).resolve() == folder.resolve():
            raise UserError(f"{run} is what this run comes from and cannot be its own folder; name another (--workdir)")
