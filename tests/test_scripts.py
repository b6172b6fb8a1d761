"""The scripts as a user runs them: real signals and exit statuses, pictures, one clear message for each mistake."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiers
from tests.scripts import ENVIRONMENT, ROOT, finish, here, start

TINY = ("digits_ddpm", "--tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "digits"
    code, out, _ = here("train.py", *TINY, "--workdir", str(folder))
    assert code == 0
    assert f"run folder: {folder}" in out
    return folder


def wait_for_step(folder: Path, step: int) -> None:
    """Until the log has reached a step."""
    path = folder / "metrics.jsonl"
    for _ in range(1200):
        if path.exists() and any(f'"step": {n}' in path.read_text() for n in range(step, step + 500)):
            return
        time.sleep(0.05)
    raise AssertionError("the run never got there")


LONG = (*TINY, "--steps", "400", "--log-every", "1", "--sample-every", "0", "--checkpoints.every", "40")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish("train.py", *LONG, "--workdir", str(folder))[0] == 0
    return json.loads((folder / "summary.json").read_text())["state_digest"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "code"),  # tests/test_chaos.py kills, too
    tiers({"kill": (signal.SIGKILL, -9), "term": (signal.SIGTERM, 143), "int": (signal.SIGINT, 130)}, first=("term",)),
)
def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bits(tmp_path, unbroken, number, code):
    for step in (60, 130):
        process = start("train.py", *LONG, "--workdir", str(tmp_path))
        wait_for_step(tmp_path, step)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == code
        assert "Traceback" not in err
        if number != signal.SIGKILL:
            assert err.index(f"{number.name}: stopping after") < err.index(f"{number.name}: saved step")
            assert "the same command resumes" in err
    assert not (tmp_path / "summary.json").exists()
    code, out, _ = finish("train.py", *LONG, "--workdir", str(tmp_path))
    assert code == 0
    assert "resumed" in out
    assert ": an epoch of " in out
    assert json.loads((tmp_path / "summary.json").read_text())["state_digest"] == unbroken


def test_sample_writes_a_picture_the_numbers_and_the_cost(run, tmp_path):
    code, out, _ = finish("sample.py", str(run), "--n", "10", "--out", str(tmp_path))
    assert code == 0
    assert "10 samples from step 20: 5 network calls" in out
    assert "s a sample" in out
    first = np.load(tmp_path / "samples.npz")["x"]
    assert first.shape == (10, 8, 8, 1)
    with Image.open(tmp_path / "samples.png") as picture:
        assert min(picture.size) > 100
    more = (
        *("--n", "3", "--seed", "0", "--batch-size", "2", "--steps", "7"),
        *("--sampler", "ddim", "--sampler.eta", "0.5", "--grid", "uniform"),
    )
    code, out, _ = here("sample.py", str(run), *more, "--out", str(tmp_path / "b"))
    assert code == 0
    assert "3 samples from step 20: 7 network calls" in out
    here("sample.py", str(run), "--n", "3", "--batch-size", "2", "--out", str(tmp_path / "c"))
    np.testing.assert_allclose(np.load(tmp_path / "c" / "samples.npz")["x"], first[:3], atol=1e-5)


def test_a_sampler_of_ones_own_with_a_setting_and_a_trajectory(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def still(path, knots, *, keep: float = 1.0):\n"
        "    n = knots.steps\n"
        "    return np.full(n, keep), np.zeros((n, 1)), np.zeros(n)\n"
        "def broken(denoise, x, here, there, noise):\n    return x / 0\n"
    )
    more = ("--sampler.keep", "0.5", "--steps", "4", "--n", "6", "--trajectory", "--out", str(tmp_path))
    code, out, _ = here("sample.py", str(run), "--sampler", f"{file}:still", *more)
    assert code == 0
    assert "6 samples from step 20: 4 network calls" in out
    states = np.load(tmp_path / "trajectory.npz")["x"]
    assert states.shape == (5, 6, 8, 8, 1)
    np.testing.assert_allclose(states[3], states[0] / 8, rtol=1e-6)  # three moves by one half; then x̂₀
    with Image.open(tmp_path / "trajectory.gif") as animation:
        assert animation.n_frames == 5
        assert min(animation.size) > 100
    code, _, err = here("sample.py", str(run), "--sampler", f"{file}:broken")
    assert code == 2
    assert f"error: {file}:broken gave a value that is not finite at step 1 of 5" in err


@pytest.mark.thorough
def test_the_list_of_samplers_and_the_calls_of_an_adaptive_one(run, tmp_path):
    code, out, _ = here("sample.py", "--list-samplers")
    assert code == 0
    assert "dpmpp_3m" in out
    code, out, _ = here("sample.py", str(run), "--sampler", "tsit5", "--n", "3", "--out", str(tmp_path))
    assert code == 0
    assert "(from " in out
    assert "network calls" in out


@pytest.mark.thorough
def test_sampling_a_class_from_a_run_that_was_killed(tmp_path):
    command = (*LONG, "--model.net.num-classes", "10", "--loss.label-dropout", "0.1", "--workdir", str(tmp_path / "r"))
    process = start("train.py", *command)
    wait_for_step(tmp_path / "r", 90)
    # still training: the newest finished checkpoint is read beside it
    code, out, _ = finish("sample.py", str(tmp_path / "r"), "--n", "2", "--label", "3", "--out", str(tmp_path))
    assert code == 0
    assert "2 samples from step" in out
    process.kill()
    process.communicate()
    code, out, _ = finish("sample.py", str(tmp_path / "r"), "--n", "2", "--label", "3", "--out", str(tmp_path))
    assert code == 0
    assert (np.load(tmp_path / "samples.npz")["label"] == 3).all()
    code, _, err = here("sample.py", str(tmp_path / "r"), "--label", "10")
    assert (code, "--label 10: allowed is 0 to 9" in err) == (2, True)


def test_a_reader_that_has_read_enough_is_no_mistake():
    process = start("sample.py", "--list-samplers")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_list_and_help_read_well():
    code, out, _ = here("train.py", "--list")
    assert code == 0
    assert "digits_ddpm" in out
    assert "DDPM on CIFAR-10 with the paper's settings" in out
    assert here("train.py")[1].startswith("usage: python train.py EXPERIMENT")
    assert here("sample.py", "--help")[1].startswith("usage: python sample.py RUN")
    code, out, _ = here("train.py", "digits_ddpm", "--help")
    assert code == 0
    for words in ("--model.net.width", "--restart", "--batch-size", "--sampler.solver.eta", "--workdir"):
        assert words in out, words


MISTAKES = {
    "experiment": (("train.py", "digit_ddpm"), "no experiment 'digit_ddpm'; did you mean digits_ddpm"),
    "no experiment": (("train.py", "--steps", "3"), "name the experiment first"),
    "field": (("train.py", *TINY, "--stepz", "3"), "--steps"),
    "sampler": (("train.py", *TINY, "--sampler.solver", "dim"), "did you mean ddim"),
    "dataset": (("train.py", *TINY, "--data", "digitz"), "did you mean digits"),
    "tfds name": (("train.py", "mnist_ddpm", "--tiny", "--data.name", "mnits"), "the nearest are mnist"),
    "file": (("train.py", "nothing.py"), "there is no file nothing.py"),
    "value": (("train.py", *TINY, "--steps", "x"), "--steps"),
    "flag": (("train.py", *TINY, "--workdir"), "--workdir needs a value"),
    "no run": (("sample.py", "nowhere"), "nowhere holds no run"),
    "sample's flag first": (("sample.py", "--n", "3"), "name the run's folder first"),
}


@pytest.mark.parametrize(("command", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_clear_message_and_exit_status_2(command, message, tmp_path):
    where = () if "--workdir" in command or command[0] == "sample.py" else ("--workdir", str(tmp_path / "w"))
    code, _, err = here(*command, *where)
    assert code == 2
    assert message in err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n", "0"), "--n and --batch-size must be at least 1, got 0"),
        (("--steps", "0"), "at least 1 step"),
        (("--steps", "5000"), "at most as many steps as it was trained with"),
        (("--sampler", "dim"), "--sampler dim: no Solver of that name; did you mean ddim"),
        (("--label", "3"), "the model is not conditioned on a class"),
        (("--sampler.etta", "1"), "--sampler.eta"),
    ],
)
def test_samples_mistakes(run, arguments, message):
    code, _, err = here("sample.py", str(run), *arguments)
    assert code == 2
    assert message in err


def test_missing_data_names_folder_and_command(tmp_path):
    code, _, err = finish("train.py", "mnist_ddpm", "--tiny", TFDS_DATA_DIR=str(tmp_path))
    assert code == 2
    assert f"mnist is not in {tmp_path}" in err
    assert "download_and_prepare()" in err


def test_a_folder_with_other_settings_is_refused(run):
    code, _, err = here("train.py", *TINY, "--steps", "30", "--workdir", str(run))
    assert code == 2
    assert "steps: 20 in the run, 30 asked for" in err
    assert (run / "summary.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc stands for a folder that cannot be written")
def test_a_folder_that_cannot_be_written():
    code, _, err = here("train.py", *TINY, "--workdir", "/proc/run")
    assert code == 1
    assert err.startswith("error: ")
    assert "/proc/run" in err


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits on file size")
def test_a_checkpoint_that_cannot_be_written_whole(tmp_path):
    """As on a full disk: the operating system refuses files of over 200 kB."""
    arguments = (*TINY, "--model.net.width", "128", "--sample-every", "0", "--workdir", str(tmp_path / "r"))
    process = start("train.py", *arguments, limit=200_000, JAX_COMPILATION_CACHE_DIR="")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "a checkpoint could not be written (File too large); no checkpoint had been written before" in err


def test_tensorflow_is_imported_by_nobody():
    code = "import sys, training.loop, training.cli, experiments.mnist_ddpm; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True)
