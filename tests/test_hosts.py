"""Runs of several processes on one machine: found by what SLURM sets, equal to one process, stopped together."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from tests.chaos import WAITED_IN_VAIN, ended, free_port
from tests.conftest import QUICKLY, tfds_has
from tests.families import FAMILIES, STEPS, family, run
from tests.scripts import ENVIRONMENT, ROOT, start
from training.checkpoint import Store
from training.cli import experiment_names, load_experiment, parse, take, take_cluster
from training.distributed import Cluster, expected
from training.errors import UserError
from training.loop import train
from training.mesh import Mesh
from training.plan import Plan
from training.state import state_digest

TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def slurm(process: int, port: int) -> dict[str, str]:
    """What SLURM sets in the processes of a step, two tasks of one node."""
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "JAX_COORDINATOR_PORT": str(port),
    }


def together(begin: Callable[[int], list[subprocess.Popen[str]]]) -> list[tuple[int, str, str]]:
    """What processes that meet at a port ended with; once more where one has waited in vain for a slow other."""
    found = ended(begin(free_port()), timeout=400)
    if any(WAITED_IN_VAIN in err for _, _, err in found):
        found = ended(begin(free_port()), timeout=400)
    return found


@pytest.mark.thorough
def test_two_processes_of_two_devices_are_one_process(tmp_path):
    """Losses of 20 steps of every family to 1e-5; the checkpoint that both have written restores on other meshes."""
    names = [name for name in FAMILIES if "omniglot" not in name or tfds_has("omniglot")]
    command = [sys.executable, "-m", "tests.hosts", str(tmp_path), *names]
    common: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**ENVIRONMENT, "XLA_FLAGS": f"{TWO_DEVICES} {QUICKLY}"}
    found = together(
        lambda port: [subprocess.Popen(command, env={**environment, **slurm(i, port)}, **common) for i in range(2)]
    )
    for code, _, err in found:
        assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    for name in names:
        _, losses = run(Plan(family(name, Mesh(data=1))))
        np.testing.assert_allclose(found[name], losses, rtol=1e-5, err_msg=name)
    for mesh in (Mesh(data=1), Mesh(data=2, fsdp=2, model=2, fsdp_from=64)):
        restored = Store(tmp_path).restore(Plan(family(names[0], mesh)).state_like)
        assert restored is not None
        assert int(restored[0].step) == STEPS
        assert state_digest(restored[0]) == found["digest"]


@pytest.mark.thorough
def test_train_py_as_two_slurm_tasks_is_one_run(tmp_path):
    """Its log, its pictures and its summary are one process's; samples and metrics are those of one process."""
    arguments = (
        "digits_ddpm",
        "--tiny",
        "--mesh.fsdp",
        "2",
        "--mesh.fsdp-from",
        "64",
        "--workdir",
        str(tmp_path / "r"),
    )
    [(code, out, err), (other, silent, _)] = together(
        lambda port: [start("train.py", *arguments, XLA_FLAGS=TWO_DEVICES, **slurm(i, port)) for i in range(2)]
    )
    assert (code, other) == (0, 0), err
    assert "4 devices (data 2, fsdp 2, model 1) hold" in out
    assert "loss" not in silent
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert len(list((tmp_path / "r" / "samples").glob("*.png"))) == 2
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    alone = train(replace(load_experiment("digits_ddpm", tiny=True), mesh=Mesh(data=1)), tmp_path / "alone")
    np.testing.assert_allclose(summary["loss"], alone["loss"], rtol=1e-5)
    assert summary["two_sample_accuracy"] == pytest.approx(alone["two_sample_accuracy"], abs=0.05)

    drawn = ("sample.py", str(tmp_path / "r"), "--n", "6", "--out", str(tmp_path))
    samples = together(lambda port: [start(*drawn, XLA_FLAGS=TWO_DEVICES, **slurm(i, port)) for i in range(2)])
    assert [code for code, _, _ in samples] == [0, 0]
    x = np.load(tmp_path / "samples.npz")["x"]
    plan = Plan(replace(load_experiment("digits_ddpm", tiny=True), mesh=Mesh(data=1)))
    restored = Store(tmp_path / "r").restore(plan.state_like)
    assert restored is not None
    np.testing.assert_allclose(x, plan.samples(restored[0], 6), atol=1e-4)


@pytest.mark.thorough
def test_what_stops_one_process_is_said_by_all(tmp_path):
    """The folder holds another run: only the first looks, and none is left waiting."""
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    port = free_port()
    arguments = ("digits_ddpm", "--tiny", "--workdir", str(folder))
    processes = [start("train.py", *arguments, **slurm(i, port)) for i in range(2)]
    found = ended(processes)
    assert all(code != 0 for code, _, _ in found), found
    assert all("is not JSON" in err for _, _, err in found), found
    assert "Traceback" not in found[0][2] + found[1][2]


def test_launchers_are_recognised():
    assert not expected({})
    assert not expected({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"})  # within sbatch, not within a step
    assert not expected({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"})
    assert expected({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-2]"})
    assert expected({"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "2"})
    assert expected({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    assert not expected({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})  # a pod of its own, such as a notebook's
    assert expected({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:3"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "--coordinator HOST:PORT, --processes N and --process I"),
        (["--process", "x"], "--process x: this takes a whole number"),
        (["--coordinator", "h:1", "--processes", "2", "--process", "2"], "--process 2: of 2 processes the last is 1"),
    ],
)
def test_a_cluster_told_in_part_or_wrongly_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        take_cluster(arguments).join()


def test_a_process_alone_joins_nobody(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORD"))]:
        monkeypatch.delenv(name)
    assert not Cluster().join()
    assert jax.process_count() == 1


def test_the_commands_of_the_page_on_clusters_are_ones_that_train_py_takes():
    page = (ROOT / "docs" / "clusters.md").read_text()
    yaml = re.findall(r"command: \[python, train\.py, (.*)\]", page)
    commands = re.findall(r"train\.py (\w+ --[^#\n`\"|]*)", page) + [line.replace(",", " ") for line in yaml]
    assert len(commands) > 8
    for command in commands:
        name, *flags = shlex.split(command)
        assert name in experiment_names(), command
        for flag in ("--workdir", "--sweep", "--at-once"):
            take(flags, flag, has_value=True)
        take_cluster(flags)
        parse(load_experiment(name), flags, "train.py")
