"""The runs that figures are made of: trained where they are not there, whole or cut short; figures share them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from reproductions.reproduction import Cut, Row
from training.cli import load_experiment
from training.errors import UserError
from training.experiment import Experiment
from training.loop import train
from training.run import Run
from training.trained import Trained

UNSEEN: dict[str, Any] = {"metrics": (), "sample_every": 0}  # what a run need not have that nobody looks at by itself


def shortened(of: str | Experiment, steps: int) -> dict[str, Any]:
    """An experiment's fields in so few steps: its warm-up and its averages are the same part of them."""
    experiment = load_experiment(of) if isinstance(of, str) else of
    part = steps / experiment.steps
    optimizer = replace(experiment.optimizer, warmup=round(part * experiment.optimizer.warmup))
    return {"steps": steps, "optimizer": optimizer, "ema": max(0.0, 1.0 - (1.0 - experiment.ema) / part)}


def in_runs(name: str, scale: str) -> Path:
    """A run's folder. What `tiny` cuts short has one of its own, and one that `train.py NAME --tiny` does not take."""
    return Path("runs") / (f"{name}_cut" if scale == "tiny" else name)


def made(name: str, folder: Path | None = None, **changes: Any) -> Path:
    """The run of an experiment with these fields changed, in `folder` (runs/NAME); trained to the end if it is not."""
    return completed(replace(load_experiment(name), **changes), folder or Path("runs") / name)


def completed(experiment: Experiment, folder: Path) -> Path:
    """The run of an experiment in `folder`; trained to the end if it is not."""
    experiment = experiment.pinned()
    if not (folder / "summary.json").is_file():
        print(f"training in {folder}", flush=True)
        train(experiment, folder)
    elif Run(folder).experiment() != experiment:
        raise UserError(
            f"{folder} holds a run with other settings than today's; move it away, or name it by --run where one can be"
        )
    return folder


def run_of(wanted: str | Cut) -> Path:
    """The run of what a scale trains."""
    if not isinstance(wanted, Cut):
        return made(wanted)
    changes = shortened(wanted.experiment, wanted.steps) | UNSEEN
    return made(wanted.experiment, in_runs(wanted.experiment, "tiny"), **changes)


def cost(folder: Path, run: Trained) -> Row:
    """What a run has learned, and how long that took."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    return {"parameters": parameters, "training_seconds": seconds}
