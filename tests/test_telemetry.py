"""What a device tells: its memory, the part of its peak that is used, a trace; and that a CPU adds nothing to a run."""

import json
import shutil
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

import training.telemetry
import training.watchdog
from experiments.digits_ddpm import tiny as digits
from experiments.glow_digits import tiny as glow
from experiments.toy_flow import tiny as toy
from tests.conftest import tiers
from training.errors import Stopped, UserError
from training.experiment import Checkpoints
from training.log import Log
from training.loop import train
from training.mesh import Mesh
from training.plan import Plan
from training.telemetry import (
    device_memory,
    model_flops,
    parse_profile,
    peak_flops,
    told_by,
    utilisation,
    without_remat,
)

ONE = replace(toy, mesh=Mesh(data=1), sample_every=0, metrics=(), steps=6, log_every=2)


@dataclass
class Fake:
    """A device that tells."""

    device_kind: str = "NVIDIA H100 80GB HBM3"
    asked: int = 0

    def memory_stats(self):
        self.asked += 1
        return {"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**29, "bytes_limit": 2**36}


def test_memory_is_in_gib_and_a_cpu_tells_none():
    assert device_memory(Fake()) == {"memory_gib": 1.0, "memory_peak_gib": 1.5}
    assert device_memory(jax.devices()[0]) == {}


@pytest.mark.parametrize(
    ("kind", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7),
        ("NVIDIA H100 PCIe", "float16", 756.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "float32", 156.0),
        ("NVIDIA RTX A1000", "float32", None),
        ("Tesla V100S-PCIE-32GB", "float16", 130.0),
        ("Tesla V100-SXM2-16GB", "float16", 125.0),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA L40S", "bfloat16", 362.0),
        ("Tesla T4", "float16", 65.0),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float32", None),
        ("TPU v4", "bfloat16", 275.0),
        ("TPU v5 lite", "bfloat16", 197.0),
        ("TPU v5", "bfloat16", 459.0),
        ("TPU v6 lite", "float32", 918.0),
        ("cpu", "float32", None),
    ],
)
def test_peaks_are_found_by_the_devices_kind(kind, precision, tera):
    peak = peak_flops(kind, precision)
    assert peak == (None if tera is None else pytest.approx(1e12 * tera))


def test_utilisation_is_the_part_of_all_devices_peaks():
    assert utilisation(4 * 10**12, 10.0, 1e14, 2) == pytest.approx(0.2)


@pytest.mark.parametrize("experiment", tiers({"blocks": digits, "bijections": glow}, first=("blocks",)))
def test_a_steps_operations_are_the_models_whatever_is_computed_twice_and_wherever(experiment):
    plain = model_flops(Plan(replace(experiment, mesh=Mesh(data=1), remat="none")))
    assert plain > 0
    assert model_flops(Plan(replace(experiment, mesh=Mesh(data=8), remat="full"))) == plain
    if experiment is digits:  # a bijection's own matrices are multiplied in every part
        assert model_flops(Plan(replace(experiment, mesh=Mesh(data=1), accumulate=4))) == plain


def test_every_remat_of_a_model_is_taken_away_and_nothing_else():
    model = replace(glow, remat="full").resolved_model()
    assert without_remat(model) == replace(glow, remat="none", model=without_remat(glow.model)).resolved_model()
    assert without_remat(model) != model


def test_a_row_has_what_the_device_tells_of_the_step():
    plan = Plan(ONE)
    row = told_by(plan, Fake())({"steps_per_second": 5.0, "loss": 1.0})
    assert row.pop("utilisation") == pytest.approx(5.0 * model_flops(plan) / 494.7e12)
    assert row == {"memory_gib": 1.0, "memory_peak_gib": 1.5}


def test_where_no_peak_is_known_no_step_is_traced(monkeypatch):
    def refuse(plan):
        raise AssertionError("traced")

    monkeypatch.setattr(training.telemetry, "model_flops", refuse)
    assert told_by(Plan(ONE))({"steps_per_second": 5.0}) == {}
    assert set(told_by(Plan(ONE), Fake(device_kind="NVIDIA A10"))({})) == {"memory_gib", "memory_peak_gib"}


def test_the_log_asks_once_a_row_and_not_once_a_step(tmp_path):
    device = Fake()
    log = Log(tmp_path, 0, 6, 3, lambda row: device_memory(device) | {"seen": row["loss"]})
    for step in range(1, 7):
        log.step(step, {"loss": float(step)})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["memory_gib"], row["seen"]) for row in rows] == [(3, 1.0, 2.0), (6, 1.0, 5.0)]
    assert device.asked == 2


def test_a_run_on_a_cpu_claims_no_memory_and_no_peak_rate(tmp_path):
    train(ONE, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all(not set(row) & {"utilisation", "memory_gib", "memory_peak_gib"} for row in rows)


@pytest.mark.parametrize("text", ["", "10", "10:", ":20", "0:5", "20:10", "a:b", "-1:5", "1:2:3", "1.5:2"])
def test_what_is_no_span_of_steps_is_refused(text):
    with pytest.raises(UserError, match=f"--profile {text}: name the first and the last step"):
        parse_profile(text)


def test_a_span_of_steps():
    assert parse_profile("10:20") == (10, 20)
    assert parse_profile("3:3") == (3, 3)


def recorded(monkeypatch):
    """The calls of the profiler, and of the train step between them."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder.name}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    logged = Log.step
    monkeypatch.setattr(
        Log, "step", lambda self, step, values: (calls.append(str(step)), logged(self, step, values))[1]
    )
    return calls


def test_a_trace_has_its_steps_and_no_other(tmp_path, monkeypatch):
    """The step before it is done when it begins, and its own last when it ends."""
    calls = recorded(monkeypatch)
    train(ONE, tmp_path, profile=(3, 4))
    assert calls == ["1", "2", "start profile", "3", "4", "stop", "5", "6"]


def test_a_trace_that_the_run_ends_in_is_ended(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    train(ONE, tmp_path / "short", profile=(5, 50))
    assert calls == ["1", "2", "3", "4", "start profile", "5", "6", "stop"]
    with pytest.raises(UserError, match="step 7 cannot be profiled: the run has 6"):
        train(ONE, tmp_path / "long", profile=(7, 8))
    assert not (tmp_path / "long").exists()

    def stop(*_):
        raise Stopped("enough", 1)

    calls.clear()
    monkeypatch.setattr(training.watchdog.Watchdog, "done", stop)
    with pytest.raises(Stopped):
        train(ONE, tmp_path / "broken", profile=(1, 4))
    assert calls == ["start profile", "1", "stop"]


@pytest.mark.thorough
def test_a_resumed_run_traces_what_is_left_and_says_where_nothing_is(tmp_path, monkeypatch, capfd):
    half = replace(ONE, checkpoints=Checkpoints(every=3, latest=9))
    train(half, tmp_path)
    calls = recorded(monkeypatch)
    for span, expected in (((1, 3), ["4", "5", "6"]), ((2, 5), ["start profile", "4", "5", "stop", "6"])):
        shutil.rmtree(tmp_path / "checkpoints" / "6")
        calls.clear()
        train(half, tmp_path, profile=span)
        assert calls == expected
        assert ("nothing is profiled: step 3 has been taken before" in capfd.readouterr().out) == (span[1] == 3)


def test_the_profilers_files_are_in_the_runs_folder(tmp_path):
    summary = train(ONE, tmp_path, profile=(2, 3))
    written = [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]
    assert any(path.name.endswith(".xplane.pb") and path.stat().st_size > 0 for path in written)
    assert np.isfinite(summary["loss"])
