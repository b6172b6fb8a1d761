"""A run's folder: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `samples/`, `summary.json`.

`train.py --profile` adds `profile/`. `evaluate.py` adds `evaluation.json`: a list of `{"metric": its settings, "step":
of the checkpoint, "numbers": …}`, with `"features": their name` where the metric compares samples in features.
`pairs/` holds what a run of reflow has had this one draw (training/reflow.py), `codes/` what a second stage has had it
encode (training/codes.py).
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from metrics.features import PIXELS
from models.model import Model, Variables
from training import config
from training.checkpoint import OtherArraysError, Store
from training.distributed import once
from training.errors import UserError
from training.experiment import FREE, Experiment
from training.inputs import shapes_of
from training.links import check_links
from training.lock import locked
from training.log import RATE
from training.mesh import Mesh, abstract, placed

CONTENTS = (
    *("config.json", "checkpoints", "damaged", "metrics.jsonl", "tensorboard", "samples", "profile"),
    *("summary.json", "evaluation.json", "pairs", "codes", "replay"),
)
EXPERIMENT = "experiment.Experiment"  # as its configuration names it
DRAWN = ("samples.png", "samples.npz", "samples.txt", "trajectory.gif", "trajectory.npz")  # by sample.py, of the run


@dataclass(frozen=True)
class Run:
    """A folder that train.py writes and sample.py reads."""

    folder: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, and holds it against every other run.

        Raises:
          UserError: another one holds it.
        """
        with ExitStack() as stack:

            def hold() -> None:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder))

            once(hold)
            yield

    def open(self, experiment: Experiment, restart: bool) -> None:
        """Makes the folder ready for `experiment`: empty, or holding a run with the same settings, `FREE` ones apart.

        Raises:
          UserError: it holds a run with other settings, files that are no run, or links that lead out of it.
        """
        check_links(self.folder, CONTENTS)
        path = self.folder / "config.json"
        if not path.exists() and any((self.folder / name).exists() for name in CONTENTS):
            raise UserError(
                f"{self.folder} holds files but no config.json: it is no run; name another folder (--workdir)"
            )
        if restart and path.exists():
            self._delete()
        if not path.exists():
            config.save(experiment, path)
            return
        if self.check_same(experiment):
            config.save(experiment, path)

    def _delete(self) -> None:
        """Deletes the run.

        Raises:
          UserError: it is none, but another program's folder.
        """
        path = self.folder / "config.json"
        try:
            old = config.read_json(path)
        except ValueError:  # half of one: of a run that was killed, most likely
            old = {"type": EXPERIMENT}
        if not isinstance(old, dict) or old.get("type") != EXPERIMENT:
            raise UserError(f"{path} is no run's configuration, and --restart deletes runs alone; name another folder")
        # The configuration last: as long as it is there, a --restart that was cut short can be repeated.
        for name in (*CONTENTS[1:], *DRAWN, CONTENTS[0]):
            file = self.folder / name
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)

    def check_same(self, experiment: Experiment, free: tuple[str, ...] = FREE) -> bool:
        """Whether the run differs from `experiment` in settings that it may differ in (`free`), and no others.

        Raises:
          UserError: it is no run, or has other settings.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise UserError(f"{self.folder} holds no run (there is no {path})")
        try:
            old = config.read_json(path)
        except ValueError as error:  # no JSON, or no text at all
            raise UserError(f"{path} is not JSON ({error}); --restart starts the run over") from error
        new = json.loads(json.dumps(config.encode(experiment)))
        changed = [line for line in config.differences(old, new) if line.partition(":")[0].split(".")[0] not in free]
        if changed:
            raise UserError(
                f"{self.folder} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
                "Name another folder (--workdir), repeat its own settings to resume it, or --restart to start over."
            )
        return old != new

    def experiment(self) -> Experiment:
        """The configuration that the run was made with.

        Raises:
          UserError: the folder holds no run, or links that lead out of it.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            usual = "runs" / self.folder
            meant = f"; did you mean {usual}?" if (usual / "config.json").is_file() else ""
            raise UserError(f"{self.folder} holds no run (there is no {path}){meant}")
        check_links(self.folder, CONTENTS)
        experiment = config.load(path)
        if not isinstance(experiment, Experiment):
            raise UserError(f"{path} is not an experiment")
        return experiment

    def averaged(
        self, model: Model, batch: dict[str, Any], mesh: jax.sharding.Mesh, fsdp_from: int = Mesh.fsdp_from
    ) -> tuple[Variables, int]:
        """The averaged parameters of the newest readable checkpoint, and its step.

        Args:
          model: as `experiment.resolved_model()`.
          batch: shaped like the data.
          fsdp_from: of `Mesh`.

        Raises:
          UserError: there is no checkpoint yet, or none that can be read.
          OtherArraysError: it is of another model.
        """
        if not (self.folder / "checkpoints").is_dir():
            raise UserError(f"{self.folder} holds no checkpoint yet")
        shapes = shapes_of(model, batch)
        like = abstract(shapes, placed(shapes, mesh, model.split, fsdp_from, or_whole=True))
        for _ in range(4):
            try:
                return Store(self.folder).restore_average(like)
            except OtherArraysError:
                raise
            except (OSError, UserError):  # a trainer beside us may be removing an old checkpoint: look again
                time.sleep(0.5)
        return Store(self.folder).restore_average(like)

    def forget_after(self, step: int) -> None:
        """Drops log rows of steps that will be taken again, and of what has been measured, which is measured again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _step(line) is not None]
            kept = [line for line in rows if (_step(line) or 0) <= step and RATE in config.parse_json(line)]
            config.write_whole(path, "".join(line + "\n" for line in kept))

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes `summary.json`, whole or not at all."""
        config.write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    def evaluations(self) -> list[dict[str, Any]]:
        """What `evaluation.json` holds; nothing where there is none.

        Raises:
          UserError: it is not such a file.
        """
        path = self.folder / "evaluation.json"
        if not path.exists():
            return []
        try:
            rows = config.read_json(path)
        except ValueError:
            rows = None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} is not a list of evaluations; move it away to start another")
        return rows

    def add_evaluation(self, metric: Any, step: int, numbers: dict[str, float], features: str = "") -> None:
        """Adds a measurement to `evaluation.json`, in place of one of the same settings, step and features.

        Args:
          features: their name; empty for a metric that is measured in none.
        """
        space = {"features": features} if features else {}
        row = json.loads(json.dumps({"metric": config.encode(metric), "step": step, **space, "numbers": numbers}))
        # A row of before every name was stored is of raw pixels.
        what = lambda row: (row.get("metric"), row.get("step"), row.get("features", PIXELS.name))  # noqa: E731
        rows = [*(other for other in self.evaluations() if what(other) != what(row)), row]
        config.write_whole(self.folder / "evaluation.json", json.dumps(rows, indent=2) + "\n")


def _step(line: str) -> int | None:
    try:
        return int(config.parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None  # the last line of a killed run may be half a line
