"""Sweeps: every mistake before anything is trained; names, slots and tables; real runs that were killed and go on."""

import csv
import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import ENVIRONMENT, finish, here, start
from training.cli import parse
from training.errors import UserError
from training.lock import locked
from training.scaling import Dynamic
from training.sweep import Outcome, aligned, arguments, labels, load, names, one_line, slots, table

TINY = ("digits_ddpm", "--tiny")
# The suite's quick compilation for runs that are processes of their own, which have one device.
QUICK = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")}
# In place of train.py: says what it was given and ends as its settings tell.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
value = lambda flag: [after for word, after in zip(sys.argv, sys.argv[1:]) if word == flag][-1]
folder = Path(value("--workdir"))
folder.mkdir(exist_ok=True)
(folder / "seen.json").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
how = value("--log-every")
if how == "13":
    print("error: so it goes")
    sys.exit(3)
if how == "9":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "99":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(60)
while how == "2" and len(list(folder.parent.glob("*/seen.json"))) < 2:
    time.sleep(0.01)
numbers = {"seconds": 1.5, "loss": 0.25, "steps": 1, "device": "cpu", "bits": {"deep": 1}, "state_digest": "0"}
(folder / "summary.json").write_text(json.dumps(numbers))
"""

# A user's own, each step of which takes as long as is asked for.
EXPERIMENT = """
import os, time
from dataclasses import dataclass, replace
from experiments.toy_flow import tiny
from models.denoiser import Denoiser

@dataclass(frozen=True, kw_only=True)
class Slow(Denoiser):
    def check_batch(self, batch):
        time.sleep(float(os.environ.get("SLOW", "0")))

model = Slow(net=tiny.model.net, path=tiny.model.path, predicts="velocity")
experiment = replace(tiny, model=model, metrics=(), sample_every=0)
"""


def written(folder: Path, text: str, name: str = "sweep.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Path:
    """The sweep's folder; its runs are the stub."""
    monkeypatch.setattr("training.trials.TRAIN", Path(written(tmp_path, STUB, "stub.py")))
    return tmp_path / "w"


def test_settings_become_the_command_lines_words():
    element = {
        "seed": 3,
        "optimizer.learning_rate": 3e-5,
        "model.path": "cosine",
        "initial": "-x",
        "loss_scaling": None,
    }
    assert arguments(element) == [
        *("--seed", "3", "--optimizer.learning-rate", "3e-05", "--model.path", "cosine", "--initial=-x"),
        *("--loss-scaling", "None"),
    ]
    element = {"model.net.scale_shift": False, "data.flip": True, "model.net.multipliers": (1, 2), "attention": ()}
    assert arguments(element) == [
        *("--model.net.no-scale-shift", "--data.flip", "--model.net.multipliers", "1", "2", "--attention")
    ]


@dataclass(frozen=True, kw_only=True)
class Settings:
    flip: bool = False
    bias: bool = True
    sizes: tuple[int, ...] = (1,)
    none: tuple[int, ...] = (1,)
    at: tuple[float, float] = (0.0, 1.0)
    width: int | None = 1
    scaling: Dynamic | None = field(default_factory=Dynamic)
    text: str = ""


def test_the_words_are_read_as_what_they_were_made_of():
    element = {"flip": True, "bias": False, "sizes": (1, 3), "none": (), "at": (-1e-5, np.float64(0.5))}
    element |= {"width": None, "scaling": None, "text": "-x y"}
    assert parse(Settings(), arguments(element), "train.py") == Settings(**element)


def test_names_are_readable_different_and_fit_for_a_file_system():
    assert names([{"optimizer.learning_rate": 1e-3, "seed": 0}, {}]) == ["learning_rate=0.001,seed=0", "base"]
    sharing = [{"model.net.width": 8, "loss.width": 4}, {"seed": 1}]
    assert labels(sharing) == {"model.net.width": "model.net.width", "loss.width": "loss.width", "seed": "seed"}
    assert names(sharing) == ["model.net.width=8,loss.width=4", "seed=1"]
    assert names([{"multipliers": (1, 2)}]) == ["multipliers=1_2"]
    strange = [{"initial": "runs/a"}, {"initial": "runs_a"}, {"x": "n"}, {"x": "N"}, {"x": "y" * 300}, {"x": "y" * 301}]
    found = names(strange)
    assert found == names(strange)
    assert len({name.casefold() for name in found}) == len(found)
    assert found[0].startswith("initial=runs_a-")
    assert found[1] == "initial=runs_a"
    assert all(len(name) <= 100 and "/" not in name for name in found)


def test_every_slot_has_a_device_of_its_own():
    assert slots(1, {"CUDA_VISIBLE_DEVICES": "4,5"}, gpus=2) == [{}]
    alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    assert slots(2, {}, gpus=2) == [
        {"CUDA_VISIBLE_DEVICES": i, "HIP_VISIBLE_DEVICES": i, "TPU_VISIBLE_CHIPS": i, **alone} for i in "01"
    ]
    assert slots(2, {"CUDA_VISIBLE_DEVICES": "4, 5", "TPU_VISIBLE_CHIPS": "2,3,1"}) == [
        {"CUDA_VISIBLE_DEVICES": "4", "HIP_VISIBLE_DEVICES": "4", "TPU_VISIBLE_CHIPS": "2", **alone},
        {"CUDA_VISIBLE_DEVICES": "5", "HIP_VISIBLE_DEVICES": "5", "TPU_VISIBLE_CHIPS": "3", **alone},
    ]
    assert "CUDA_VISIBLE_DEVICES" not in slots(2, {"CUDA_VISIBLE_DEVICES": ""})[1]
    assert len(slots(3, {"JAX_PLATFORMS": "cpu"}, gpus=2)) == 3
    with pytest.raises(UserError, match="wants as many devices, one a run, and there is CUDA_VISIBLE_DEVICES=7"):
        slots(2, {"CUDA_VISIBLE_DEVICES": "7"})
    with pytest.raises(UserError, match="and there are 2"):
        slots(3, {}, gpus=2)


def test_a_table_has_the_settings_that_vary_and_the_numbers():
    summary = {"steps": 9, "seconds": 1.5, "loss": 0.123456, "features": "pixels", "more": {"a": 1}, "accuracy": 1}
    outcomes = [Outcome(status="finished", summary=summary), Outcome(status="failed (2)")]
    rows = table([{"loss": "denoising"}, {"model.net.width": 8}], outcomes)
    assert rows[0] == ["--loss", "width", "status", "seconds", "loss", "accuracy"]
    assert rows[1:] == [
        ["denoising", "", "finished", 1.5, 0.123456, 1],
        ["", "8", "failed (2)", "", "", ""],
    ]
    lines = aligned(rows).splitlines()
    assert len(set(map(len, lines))) == 1
    assert lines[1] == "denoising         finished        1.5  0.1235         1"


def test_a_box_of_tyros_in_one_line():
    plain = "\n Title  \n -----\n  Unknown:   \n  --stepz    \n -----\n  You meant  \n -----\n  For help  \n\n"
    drawn = "╭─ Title ───╮\n│ Unknown:  │\n│ --stepz   │\n│ ─── │\n│ You meant │\n│ ─── │\n│ For help  │\n╰───────────╯"
    assert one_line(plain) == one_line(drawn) == "Unknown: --stepz; You meant"


LISTS = {
    "no sweep": ("swep = []", "defines no list `sweep`"),
    "no list": ("sweep = ({},)", "defines no list `sweep`"),
    "empty": ("sweep = []", "the list `sweep` is empty"),
    "no dict": ("sweep = [{}, 3]", r"sweep\[1\] is 3, not a dict of settings"),
    "no names": ("sweep = [{1: 3}]", r"sweep\[0\] is {1: 3}, not a dict"),
    "no value": ("sweep = [{'a': {}}]", r"sweep\[0\]: a is {}; values are"),
    "equal": ("sweep = [{'a': 1, 'b_c': 2}, {'a': 2}, {'b-c': 2, 'a': 1}]", r"sweep\[0\] and sweep\[2\] are equal"),
    "broken": ("sweep = [{'a': b}]", "NameError: name 'b' is not defined"),
    "syntax": ("sweep = [", "SyntaxError"),
}


@pytest.mark.parametrize(("text", "message"), LISTS.values(), ids=LISTS.keys())
def test_a_file_that_is_no_sweep(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(written(tmp_path, text))


MISTAKES = {
    "unknown": ([{"seed": 0}, {"stepz": 3}], (), "sweep[1] = {'stepz': 3}: Unrecognized options: --stepz, 3; Perhaps"),
    "value": ([{"steps": "x"}], (), "sweep[0] = {'steps': 'x'}: Error parsing --steps: invalid literal"),
    "refused": ([{"seed": -1}], (), "seed=-1 is not in [0, 2^31)"),
    "auto": ([{"batch_size": 8}], ("--batch-size", "auto"), "batch_size is left to be chosen by `auto`"),
    "train.py's own": ([{"workdir": "x"}], (), "Unrecognized options: --workdir, x"),
    "at once": ([{}], ("--at-once", "0"), "--at-once 0: name how many"),
    "profile": ([{}], ("--profile=1:2",), "--profile is for a single run"),
    "plan": ([{}], ("--plan-memory",), "--plan-memory is for a single run"),
}


@pytest.mark.parametrize(("elements", "more", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_any_element_is_named_before_anything_is_trained(elements, more, message, tmp_path):
    file = written(tmp_path, f"sweep = {elements}")
    code, out, err = here("train.py", *TINY, "--sweep", file, *more, "--workdir", tmp_path / "w")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_mistakes_outside_of_the_list(tmp_path):
    code, _, err = here("train.py", *TINY, "--sweep", "nowhere.py")
    assert (code, err) == (2, "error: --sweep: there is no file nowhere.py\n")
    assert "--at-once" in here("train.py", *TINY, "--at-once", "2")[2]  # no sweep


def test_runs_at_once_have_their_devices_and_one_that_fails_stops_no_other(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    file = written(
        tmp_path, "sweep = [{'log_every': 2}, {'log_every': 2, 'seed': 1}, {'log_every': 13}, {'log_every': 9}]"
    )
    command = ("train.py", *TINY, "--log-every", "1", "--sweep", file, "--workdir", stub, "--at-once", "2", "--restart")
    code, out, err = here(*command)
    assert code == 1
    assert "[1/4] log_every=2: finished in " in out
    assert " s, loss 0.25" in out
    assert "[3/4] log_every=13: failed (3) after " in out
    assert ": error: so it goes" in out
    assert "[4/4] log_every=9: failed (-9) after " in out
    assert ": it said nothing" in out
    assert "2 of 4 runs are finished; the same command without --restart goes on; what they said is in " in err
    seen = [json.loads((stub / name / "seen.json").read_text()) for name in ("log_every=2", "log_every=2,seed=1")]
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in seen] == ["4", "5"]
    assert seen[1][0] == [
        *(*TINY, "--log-every", "1", "--restart", "--log-every", "2", "--seed", "1"),
        *("--workdir", str(stub / "log_every=2,seed=1")),
    ]
    with (stub / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed (3)", "failed (-9)"]
    assert rows[1] == {
        **{"run": "log_every=2,seed=1", "log_every": "2", "seed": "1", "status": "finished"},
        **{"seconds": "1.5", "loss": "0.25"},
    }


def test_a_second_signal_kills(stub, tmp_path):
    file = written(tmp_path, "sweep = [{'log_every': 99}, {'log_every': 1}]")

    def interrupt() -> None:
        log = stub / "log_every=99.log"
        while not (log.exists() and "deaf" in log.read_text()):
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, out, err = here("train.py", *TINY, "--sweep", file, "--workdir", stub)
    thread.join()
    assert code == 130
    assert "[1/2] log_every=99: stopped after " in out
    assert "[2/2]" not in out
    assert "not started" in out
    assert err == "SIGINT: 0 of 2 runs are finished; the same command goes on\n"


def test_a_run_that_another_process_trains_is_left_to_it(stub, tmp_path):
    run = stub / "log_every=1"
    run.mkdir(parents=True)
    command = ("train.py", *TINY, "--sweep", written(tmp_path, "sweep = [{'log_every': 1}]"), "--workdir", stub)
    with locked(run):
        code, _, err = here(*command)
    assert code == 2
    assert f"log_every=1 is being trained in by process {os.getpid()} on" in err
    assert here(*command)[0] == 0


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"there never was {path}")


@pytest.mark.thorough
def test_a_sweep_that_was_stopped_goes_on_where_its_runs_were(tmp_path, monkeypatch):
    experiment = written(tmp_path, EXPERIMENT, "swept_toy.py")
    elements = [{"seed": 0}, {"initial": "nowhere"}]  # the last fails only when it runs
    file = written(tmp_path, f"sweep = {elements}")
    settings = ("--steps", "20", "--checkpoints.every", "5", "--seed", "7")
    command = ("train.py", experiment, *settings, "--sweep", file, "--workdir", str(tmp_path / "w"))
    first = tmp_path / "w" / "seed=0"

    process = start(*command, **QUICK, SLOW="0.2")
    wait_for(first / "checkpoints" / "5")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "[1/2] seed=0: stopped after " in out
    assert "s: SIGTERM: saved step" in out
    assert out.count(": started\n") == 1
    assert [line.split()[-1] for line in out.splitlines()[-3:-1]] == ["stopped", "started"]
    assert err == "SIGTERM: 0 of 2 runs are finished; the same command goes on\n"
    begun = {"config.json", "checkpoints", "lock", "metrics.jsonl", "tensorboard"}
    assert {path.name for path in first.iterdir()} <= begun

    for name in (*QUICK, "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, (ENVIRONMENT | QUICK)[name])
    code, out, err = here(*command, "--at-once", "2")
    assert code == 1
    assert "[2/2] initial=nowhere: failed (2) after " in out
    assert "error: --initial nowhere: nowhere holds no run" in out
    assert err.startswith("error: 1 of 2 runs are finished; the same command goes on")
    assert f"resumed {first} at step " in first.with_name("seed=0.log").read_text()
    assert json.loads((first / "config.json").read_text())["seed"] == 0  # not the command line's 7
    with (tmp_path / "w" / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0].values())[:4] == ["seed=0", "0", "", "finished"]
    assert float(rows[0]["loss"]) == json.loads((first / "summary.json").read_text())["loss"]

    # What is finished needs no process and no device: neither could be had on this platform.
    written(tmp_path, f"sweep = {elements[:1]}")
    code, out, err = finish(*command, JAX_PLATFORMS="nowhere")
    assert (code, err) == (0, "")
    assert ", 1 of them finished before" in out
    assert ": started" not in out

    code, _, err = here(*command, "--batch-size", "32")
    assert code == 2
    assert "holds a run with other settings:\n  batch_size: 64 in the run, 32 asked for\n" in err
