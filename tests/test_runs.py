"""A run's folder when something comes in between: a restart cut short, other data, a metric that fails, two at once."""

import json
import multiprocessing
import multiprocessing.pool
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from data.arrays import ArraySource
from data.dataset import Dataset, Source
from data.npz import write_npz
from experiments.toy_flow import tiny as toy
from metrics.metric import Evaluation, Metric
from tests.sources import hold
from training import run as runs
from training.errors import Stopped, UserError
from training.experiment import Checkpoints, Experiment
from training.lock import alone
from training.log import RATE
from training.loop import train
from training.mesh import Mesh
from training.optimizer import Optimizer
from training.run import Run
from training.stopping import Stopping

ONE = replace(toy, mesh=Mesh(data=1), sample_every=0, metrics=(), steps=6, checkpoints=Checkpoints(every=3))


@dataclass(frozen=True, kw_only=True)
class Points(Dataset):
    """As many points of the plane as a file says."""

    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    def source(self, split: str) -> Source:
        points = np.arange(2.0 * int(Path(self.path).read_text())).reshape(-1, 2)
        return ArraySource(points, None, lambda x: x.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Broken(Metric):
    """Fails as code does that was never run."""

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        raise KeyError("nothing of that name")


def stopped_at_three(experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch, **how: bool) -> Stopped:
    with monkeypatch.context() as patched:
        patched.setattr(Stopping, "after", lambda self, step: step == 3)
        with pytest.raises(Stopped) as caught:
            train(experiment, folder, **how)
    return caught.value


def test_a_run_is_not_resumed_on_more_data_or_less(tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "number", tmp_path / "run"
    file.write_text("40")
    experiment = replace(ONE, data=Points(path=str(file)), batch_size=48)
    stopped_at_three(experiment, folder, monkeypatch)
    assert "an epoch of 40 examples (fewer than a batch of 48, which repeats them), " in capsys.readouterr().out
    file.write_text("41")
    with pytest.raises(UserError, match="a training split of 40 examples, which now has 41"):
        train(experiment, folder)
    file.write_text("40")
    assert train(experiment, folder)["steps"] == 6


@pytest.mark.thorough
def test_what_a_run_with_restart_says_when_it_stops_does_not_start_over(tmp_path, monkeypatch):
    assert "; the same command resumes" in str(stopped_at_three(ONE, tmp_path, monkeypatch))
    stop = stopped_at_three(replace(ONE, seed=1), tmp_path, monkeypatch, restart=True)
    assert "; the same command without --restart resumes" in str(stop)


@pytest.mark.thorough
def test_a_restart_that_is_cut_short_can_be_repeated_and_leaves_no_picture_of_the_dead(tmp_path, monkeypatch):
    train(ONE, tmp_path)
    (tmp_path / "samples.png").write_bytes(b"of the dead")

    def fails(folder: Path) -> None:
        raise OSError("held by another program")

    other = replace(ONE, seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(runs.shutil, "rmtree", fails)
        with pytest.raises(OSError, match="held"):
            train(other, tmp_path, restart=True)
    assert train(other, tmp_path, restart=True)["steps"] == 6
    assert Run(tmp_path).experiment() == other
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("content", ['{"model_type": "gpt2"}', "[1, 2]"])
def test_a_restart_deletes_no_other_programs_folder(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is no run's configuration, and --restart deletes runs alone"):
        train(ONE, tmp_path, restart=True)
    assert (tmp_path / "checkpoints").is_dir()
    assert (tmp_path / "config.json").read_text() == content


def test_a_metric_that_fails_costs_its_number_alone_and_measuring_again_is_logged_once(tmp_path, capsys):
    assert train(replace(ONE, metrics=(Broken(),)), tmp_path)["steps"] == 6
    assert "could not be measured: KeyError: 'nothing of that name'" in capsys.readouterr().out
    experiment = replace(ONE, metrics=toy.metrics[:1])
    for _ in range(2):
        train(experiment, tmp_path / "measured")
    rows = [json.loads(line) for line in (tmp_path / "measured" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if RATE not in row] == [6]
    assert [row["step"] for row in rows if RATE in row][-1] == 6


def test_who_makes_what_another_makes_waits_for_it(tmp_path, capsys):
    context = multiprocessing.get_context("spawn")
    held, until = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, until))
    other.start()
    assert held.wait(60)
    waiter = multiprocessing.pool.ThreadPool(1)
    mine = waiter.apply_async(lambda: alone(tmp_path).__enter__())
    time.sleep(0.3)
    assert not mine.ready()
    until.set()
    mine.get(30)
    other.join()
    waiter.terminate()
    assert f"waiting for what process {other.pid}" in capsys.readouterr().out


def test_an_archive_that_cannot_be_written_leaves_the_one_that_is_there(tmp_path):
    path = tmp_path / "samples.npz"
    write_npz(path, {"x": np.ones(3)})

    class Never:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_npz(path, {"x": np.zeros(3), "y": Never()})
    np.testing.assert_array_equal(np.load(path)["x"], np.ones(3))


@pytest.mark.parametrize(
    "change", [{"clip": -1.0}, {"learning_rate": -0.1}, {"warmup": -1}, {"weight_decay": float("nan")}, {"b1": 1.0}]
)
def test_an_optimiser_that_would_climb_is_refused(change):
    [name] = change
    with pytest.raises(ValueError, match=f"optimizer.{name}="):
        Optimizer(**change)


def test_a_device_without_memory_is_told_what_needs_less(capsys):
    from training.errors import run

    def main() -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 GiB.\nmore")

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 1
    assert "allocating 12 GiB.). train.py EXPERIMENT --plan-memory" in capsys.readouterr().err
