"""The stream of batches: the same whoever reads them, and whatever becomes of who reads them."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import Batches, MalformedDataError, ReadError
from data.digits import Digits
from data.files import FileSource
from data.images import TFDS
from data.stream import Stream
from tests.conftest import needs
from tests.scripts import ENVIRONMENT, ROOT
from tests.sources import Deadly, Numbers, Raising, TwoPartError


def workers() -> list[int]:
    """Process ids of this process's workers that are running."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def within(seconds: float, true) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not true():
        time.sleep(0.05)
    return true()


@pytest.mark.parametrize(("count", "position"), [(0, 0), (0, 43), (1, 0), (2, 43)])  # batch 44 spans two epochs
def test_batches_are_the_same_whoever_reads_them(count, position):
    batches = Batches(Digits().source("train"), 32, seed=0)
    stream = Stream(batches, position, count)
    for i in range(position, position + 4):
        assert stream.position == i
        batch = next(stream)
        assert batch.keys() == batches[i].keys()
        for name, value in batches[i].items():
            assert batch[name].dtype == value.dtype
            np.testing.assert_array_equal(batch[name], value)
    assert len(workers()) == count
    stream.close()
    assert not workers()


def test_a_worker_that_is_killed_is_told_of_and_replaced(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")  # of the workers alone: this process has read it
    batches = Batches(Numbers(), 4, seed=1)
    stream = Stream(batches, 3, workers=2)
    first = next(stream)
    assert first["process"] != os.getpid()
    assert first["on_cpu"].all(), "a worker would have taken an accelerator's memory"
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    for i in range(4, 24):
        np.testing.assert_array_equal(next(stream)["x"], batches[i]["x"])
    assert time.monotonic() - began < 30
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1
    assert told[0].startswith("warning: a data worker died (SIGKILL")
    assert "its place is taken from batch" in told[0]
    stream.close()
    assert not workers()


@pytest.mark.thorough
def test_a_batch_that_kills_its_worker_twice_is_given_up(capsys):
    stream = Stream(Batches(Deadly(number=9), 4, seed=1), workers=1)
    assert [next(stream)["x"].shape for _ in range(2)] == [(4,), (4,)]
    with pytest.raises(
        ReadError, match=r"batch 2 could not be read: a data worker died twice before it came [(]SIGKILL"
    ):
        next(stream)
    assert stream.position == 2
    assert "warning: a data worker died" in capsys.readouterr().out
    assert not workers()


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_vanished_is_named_and_can_be_put_back(tmp_path, count):
    for i in range(4):
        Image.fromarray(np.full((6, 6), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    source = FileSource(tuple(str(tmp_path / f"{i}.png") for i in range(4)), np.arange(4), 6, 1, flip=False)
    assert source.threads
    (tmp_path / "2.png").rename(tmp_path / "away")
    stream = Stream(Batches(source, 4, seed=0), workers=count)
    with pytest.raises(ReadError, match=r"batch 0 could not be read: .*2\.png is no image.*No such file") as caught:
        next(stream)
    assert isinstance(caught.value.__cause__, MalformedDataError)
    assert stream.position == 0
    (tmp_path / "away").rename(tmp_path / "2.png")
    assert sorted(next(stream)["label"]) == [0, 1, 2, 3]
    stream.close()


def test_an_error_that_cannot_be_sent_is_told():
    for count, kind in ((0, TwoPartError), (1, RuntimeError)):
        stream = Stream(Batches(Raising(), 4, seed=0), position=7, workers=count)
        with pytest.raises(ReadError, match=r"batch 7 could not be read: .*this and that") as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, kind)


PARENT = """
import multiprocessing, time
from data.dataset import Batches
from data.stream import Stream
from tests.sources import Numbers

if __name__ == "__main__":
    stream = Stream(Batches(Numbers(), 4, seed=0), workers=2)
    next(stream), next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and waits to be asked how is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
@pytest.mark.thorough
def test_workers_leave_ctrl_c_to_their_parent_and_end_with_it(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert all(map(running, pids))
        parent.kill()
    assert within(5, lambda: not any(map(running, pids)))


@needs("mnist")
def test_records_are_not_sent_but_opened_again(monkeypatch):
    from data import images

    monkeypatch.setattr(images, "IN_MEMORY", 0)
    images._source.cache_clear()
    source = TFDS(name="mnist", flip=True).source("train")
    images._source.cache_clear()
    batches = Batches(source, 16, seed=2)
    assert len(pickle.dumps(batches)) < 100_000
    stream = Stream(batches, 3, workers=1)
    np.testing.assert_array_equal(next(stream)["x"], batches[3]["x"])
    stream.close()
