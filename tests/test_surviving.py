"""What a run survives, and what it says of it: steps that are not finite, data that goes, full disks, a second run."""

import json
import os
import re
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.dataset import Source
from data.digits import Digits
from experiments.digits_ddpm import tiny as digits
from losses.denoising import Denoising
from tests.conftest import tiers
from tests.scripts import here, start
from training import config, log, loop
from training.checkpoint import Store
from training.errors import Stopped, UserError
from training.experiment import Checkpoints
from training.flight import MOST_SKIPPED
from training.lock import locked
from training.loop import train
from training.mesh import Mesh
from training.plan import Plan
from training.replay import replay
from training.run import Run
from training.saving import Saver
from training.watchdog import FIRST, Watchdog

ONE = replace(digits, mesh=Mesh(data=1), sample_every=0, metrics=(), checkpoints=Checkpoints(every=5, latest=9))


@dataclass(frozen=True, kw_only=True)
class Exploding(Denoising):
    """The third example of a batch is no number at some steps: those that have taken `at` to `until` − 1 steps."""

    at: int = 12
    until: int = 13

    def __call__(self, model, variables, key, batch, step):
        result = super().__call__(model, variables, key, batch, step)
        third = (jnp.arange(len(result.value)) == 2) & (step >= self.at) & (step < self.until)
        return result._replace(value=result.value * jnp.where(third, jnp.nan, 1.0))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path, capfd):
    """Its state is that of before, its row says nothing of the loss, and the end is as if it had not been taken."""
    experiment = replace(ONE, loss=Exploding(), on_nan="skip", log_every=1)
    summary = train(experiment, tmp_path)
    assert summary["skipped"] == 1
    assert np.isfinite(summary["loss"])
    assert re.search(r"warning: step 13: .*loss is nan.*; left out \(--replay 13\)", capfd.readouterr().out)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["step"] for row in rows if row.get("skipped")] == [13]
    assert "loss" not in rows[12]

    plan = Plan(replace(ONE, loss=Denoising()))
    state = plan.initial()
    for step in range(20):
        after, _ = plan.train_step(jax.tree.map(jnp.copy, state), plan.batches[step])
        state = state.replace(step=after.step) if step == 12 else after
    found = Run(tmp_path).averaged(plan.model, plan.batches[0], plan.mesh)[0]["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, state.average)


@pytest.mark.thorough
def test_a_run_that_stopped_at_a_step_goes_on_without_it_where_it_is_told_to(tmp_path):
    """--on-nan may change between a run and its resumption, as may all that decides nothing of what is computed."""
    experiment = replace(ONE, loss=Exploding())
    with pytest.raises(Stopped, match=r"step 13: .*loss is nan.*checkpoint is step 10 .*--replay 13") as stop:
        train(experiment, tmp_path)
    assert stop.value.code == 1
    changed = replace(experiment, on_nan="skip", mesh=Mesh(data=2), workers=1, watchdog=0.0, log_every=7)
    assert train(changed, tmp_path)["skipped"] == 1
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["data"] == 2
    with pytest.raises(UserError, match="seed: 0 in the run, 1 asked for"):
        train(replace(changed, seed=1), tmp_path)


def test_a_resumed_run_has_counted_all_that_was_skipped(tmp_path):
    experiment = replace(ONE, loss=Exploding(at=2, until=4), on_nan="skip")
    train(experiment, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    assert train(experiment, tmp_path)["skipped"] == 2


@pytest.mark.thorough
def test_a_run_of_nothing_but_such_steps_stops(tmp_path):
    experiment = replace(ONE, loss=Exploding(at=5, until=10**6), on_nan="skip", steps=200, log_every=1000)
    with pytest.raises(Stopped, match=f"step {5 + MOST_SKIPPED + 1}: .*loss is nan.*stopped"):
        train(experiment, tmp_path)


@pytest.mark.parametrize("accumulate", tiers([1, 2], first=(1,)))
@pytest.mark.thorough
def test_replay_names_the_example_that_a_step_breaks_on_and_leaves_the_run_alone(tmp_path, accumulate):
    experiment = replace(ONE, loss=Exploding(), accumulate=accumulate)
    with pytest.raises(Stopped):
        train(experiment, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines = "\n".join(replay(experiment, tmp_path, 13))
    assert "step 13, from the checkpoint of step 10" in lines
    third = [2] if accumulate == 1 else [4, 5]  # of parts that take every other example, each third
    assert f"not finite: {', '.join(f'{i} (nan)' for i in third)}" in lines
    assert "gradient: not finite in 12 of 16 arrays: " in lines or "gradient: not finite in 16 of 16 arrays: " in lines
    assert "parameters before the step: all finite" in lines
    assert "loss nan" in lines
    with np.load(tmp_path / "replay" / "step_0000013.npz") as batch:
        np.testing.assert_array_equal(batch["x"], Plan(experiment).batches[12]["x"])
    assert {path: path.read_bytes() for path in before} == before
    good = "\n".join(replay(experiment, tmp_path, 12))
    assert "gradient: all finite" in good
    assert "not finite:" not in good


@pytest.mark.thorough
def test_replay_gives_the_very_numbers_of_the_run(tmp_path):
    train(replace(ONE, log_every=1), tmp_path)
    [row] = [row for row in rows_of(tmp_path) if row["step"] == 8]
    said = list(replay(replace(ONE, log_every=1), tmp_path, 8))[-1]
    assert f"loss {row['loss']:.6g}" in said
    assert f"gradient_norm {row['gradient_norm']:.6g}" in said


def test_replays_mistakes(tmp_path, monkeypatch):
    train(ONE, tmp_path)
    with pytest.raises(UserError, match="--replay 21: the run has the steps 1 to 20"):
        list(replay(ONE, tmp_path, 21))
    with pytest.raises(UserError, match="holds no run"):
        list(replay(ONE, tmp_path / "nowhere", 3))
    (tmp_path / "runs" / "named").mkdir(parents=True)
    (tmp_path / "runs" / "named" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"named holds no run .*; did you mean runs/named"):
        Run(Path("named")).experiment()
    with pytest.raises(UserError, match="seed: 0 in the run, 4 asked for"):
        list(replay(replace(ONE, seed=4), tmp_path, 3))
    code, _, err = here("train.py", "digits_ddpm", "--tiny", "--replay", "x")
    assert (code, "--replay x: this takes a whole number" in err) == (2, True)


@pytest.mark.thorough
def test_two_runs_on_one_folder(tmp_path):
    """The second is refused and told of the first; what a killed run held is free."""
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=rf"is being trained in by process {os.getpid()} on .*, since 20"),
    ):
        train(ONE, tmp_path)
    assert not (tmp_path / "config.json").exists()
    arguments = ("digits_ddpm", "--tiny", "--steps", "100000", "--log-every", "1", "--workdir", str(tmp_path))
    first = start("train.py", *arguments)
    while not (tmp_path / "metrics.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    code, _, err = here("train.py", *arguments, "--restart")  # nor may it be deleted
    assert code == 2
    assert f"{tmp_path} is being trained in by process {first.pid} on" in err
    assert (tmp_path / "metrics.jsonl").exists()
    first.kill()
    first.communicate()
    with locked(tmp_path):
        pass


@dataclass(frozen=True, kw_only=True)
class Vanishing(Digits):
    """Its files are gone behind `after` batches."""

    after: int = 12

    def source(self, split: str) -> Source:
        return _Vanishing(super().source(split), self.after)


@dataclass(frozen=True)
class _Vanishing(Source):
    whole: Source
    after: int

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, records, seed, numbers):
        if seed >= 0 and numbers[0] >= self.after * 32:
            raise FileNotFoundError(2, "No such file or directory", "digits.array_record")
        return self.whole.read(records, seed, numbers)


@pytest.mark.thorough
def test_data_that_vanishes_stops_a_run_with_all_its_steps_saved(tmp_path):
    with pytest.raises(
        Stopped, match=r"step 13: batch 12 could not be read: .*No such file.*checkpoint is step 12"
    ) as stop:
        train(replace(ONE, data=Vanishing()), tmp_path)
    assert stop.value.code == 1
    summary = train(replace(ONE, data=Vanishing(after=10**6)), tmp_path / "whole")
    (tmp_path / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    assert train(replace(ONE, data=Vanishing(after=10**6)), tmp_path)["state_digest"] == summary["state_digest"]


@pytest.mark.parametrize("what", tiers(["metrics.jsonl", "tensorboard", "samples"], first=("metrics.jsonl",)))
def test_whatever_cannot_be_written_stops_a_run_with_what_is_saved_intact(tmp_path, monkeypatch, what):
    """A full disk may be met by a log, TensorBoard's file or a picture just as well as by a checkpoint."""

    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / what))

    owner, name = {
        "metrics.jsonl": (log.Log, "row"),
        "tensorboard": (log.Events, "add"),
        "samples": (loop, "draw_picture"),
    }[what]
    train(replace(ONE, steps=10), tmp_path)
    monkeypatch.setattr(owner, name, full)
    longer = replace(ONE, steps=20, log_every=3, sample_every=3)
    config.save(longer, tmp_path / "config.json")
    with pytest.raises(
        Stopped, match=rf"{what}.*\(No space left on device\); checkpoints \[5, 10\] in .* are intact"
    ) as stop:
        train(longer, tmp_path)
    assert stop.value.code == 1


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboardX.proto import event_pb2

    train(replace(ONE, log_every=10), tmp_path)
    [file] = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))  # pyright: ignore
        data = data[16 + size :]
    told = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    for row in rows_of(tmp_path):
        for name in set(row) - {"step"}:
            assert told[row["step"], name] == pytest.approx(row[name], rel=1e-6), name


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def watched(times=10.0, least=1.0):
    clock = Clock()
    dog = Watchdog(0.0, print, least, clock)
    dog.times = times
    return dog, clock


def test_the_watchdog_says_when_a_step_takes_many_times_the_median():
    dog, clock = watched()
    for step in range(1, 20):
        clock.now += 50.0 if step == 1 else 0.5  # the first one compiles
        dog.done(step)
        assert dog.overdue() is None
    clock.now += 4.9
    assert dog.overdue() is None
    clock.now += 0.2
    line = dog.overdue()
    assert line is not None
    assert line.startswith(
        "watchdog: step 20 has not finished in 5 s, and the median step takes 0.5 s; the process is here"
    )
    assert "test_the_watchdog_says" in line
    assert dog.overdue() is None  # said
    clock.now += 5.2  # and again when it has doubled
    assert dog.overdue() is not None
    dog.done(20)
    assert dog.overdue() is None


def test_saving_has_its_time_and_is_in_no_median():
    dog, clock = watched()
    for step in range(1, FIRST + 2):
        clock.now += 0.5
        dog.done(step)
    with dog.beside("saving"):
        clock.now += 300.0
        assert dog.overdue() is None
        clock.now += 301.0
        assert "saving after step 6 has not finished in 601 s" in (dog.overdue() or "")
    clock.now += 0.5
    dog.done(7)
    clock.now += 5.1
    assert "median step takes 0.5 s" in (dog.overdue() or "")


@pytest.mark.thorough
def test_a_hanging_step_is_reported_from_the_loop(tmp_path, monkeypatch, capfd):
    """The thread itself, with a data set that hangs once for three seconds."""
    monkeypatch.setattr(loop, "Watchdog", partial(Watchdog, least=1.0))

    @dataclass(frozen=True)
    class Hanging(_Vanishing):
        def read(self, records, seed, numbers):
            if seed >= 0 and numbers[0] == self.after * 32:
                time.sleep(3.0)
            return self.whole.read(records, seed, numbers)

    @dataclass(frozen=True, kw_only=True)
    class Slow(Digits):
        def source(self, split: str) -> Source:
            return Hanging(super().source(split), 15)

    monkeypatch.setattr(config, "save", lambda *_: None)
    train(replace(ONE, data=Slow(), watchdog=5.0), tmp_path)
    said = capfd.readouterr().out
    assert "watchdog: step 1" in said
    assert "time.sleep(3.0)" in said


def test_what_is_kept_is_told(tmp_path):
    saver = Saver(Store(tmp_path), None)
    assert saver.kept() == "nothing had been saved yet"
    with pytest.raises(BrokenPipeError), saver.or_stop():  # whoever reads along may stop
        raise BrokenPipeError
    with pytest.raises(Stopped, match=r"x could not be written \(Permission denied\); no checkpoint"), saver.or_stop():
        raise PermissionError(13, "Permission denied", "x")
