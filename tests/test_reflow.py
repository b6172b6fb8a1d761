"""Pairs drawn from a finished run, killed and extended; what a run is handed by another; what is refused."""

import itertools
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.dataset import MissingDataError
from data.digits import Digits
from experiments.digits_ddpm import tiny as digits
from experiments.toy_distill import tiny as toy_distill
from experiments.toy_flow import tiny as toy
from experiments.toy_reflow import tiny as toy_reflow
from losses.flow_matching import FlowMatching
from models.denoiser import Denoiser
from models.jump import Jump
from models.mlp import MLP
from models.model import Model
from paths.couplings import Pairs
from paths.schedules import Cosine, Rectified
from samplers.adaptive import Dopri5
from samplers.ddpm import DDPM
from samplers.diffusion import Diffusion, first_noise
from samplers.heun import Heun
from samplers.sampler import NoSampler
from tests.conftest import tiers
from tests.scripts import finish, start
from training import config
from training.cli import parse
from training.errors import UserError
from training.experiment import Checkpoints
from training.handover import Handover, finished
from training.loop import train
from training.mesh import Mesh
from training.optimizer import Optimizer
from training.plan import Plan
from training.reflow import Reflow
from training.step import named_key

ONE = replace(toy, mesh=Mesh(data=1), metrics=(), sample_every=0, checkpoints=Checkpoints(every=10))
PAIRED = replace(ONE, loss=FlowMatching(coupling=Pairs()))
HEUN = Diffusion(solver=Heun(), steps=10)


@dataclass(frozen=True, kw_only=True)
class Constant(Model):
    """No denoiser."""

    def init(self, key, batch):
        return {"params": {}, "state": {}}


config.register(sys.modules[__name__])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A finished run that has learnt something: a fresh one's velocity is 0, and its samples are its noise."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(replace(ONE, steps=60, optimizer=Optimizer(learning_rate=1e-2)), folder)
    return folder


@pytest.fixture
def teacher(original, tmp_path) -> Path:
    """A copy of it, without pairs."""
    return shutil.copytree(original, tmp_path / "teacher")


def reflow(teacher: Path, pairs: int = 64, **settings) -> Reflow:
    return Reflow(teacher=str(teacher), **{"pairs": pairs, "shard": 16, "sampler": HEUN, **settings})


def pairs_of(data: Reflow) -> dict[str, np.ndarray]:
    everything = np.arange(data.pairs)
    return data.source("train").read(everything, 0, everything)


def shards(teacher: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(teacher.glob("pairs/*/*.npz"))}


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.thorough
def test_killed_twice_the_pairs_are_those_of_an_unbroken_run(teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    # Many steps, so that a shard takes long enough to be killed in.
    settings = ("--data.pairs", "640", "--data.shard", "64", "--data.sampler.steps", "1500", "--steps", "2")

    def command(run: Path) -> tuple[str, ...]:
        workdir = ("--workdir", str(run.with_name(run.name + "_student")))
        return ("toy_reflow", "--tiny", "--data.teacher", str(run), *settings, *workdir)

    unbroken = start("train.py", *command(other))
    counts = []
    for at in (2, 5):
        process = start("train.py", *command(teacher))
        deadline = time.monotonic() + 120
        while len(shards(teacher)) < at and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        counts.append(len(shards(teacher)))
    assert 2 <= counts[0] < counts[1] < 10
    kept = {path: path.stat().st_mtime_ns for path in teacher.glob("pairs/*/*.npz")}
    code, out, err = finish("train.py", *command(teacher))
    assert code == 0, err
    assert f"pairs: {64 * counts[1]} of 640 are in" in out
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items()), "what was there is drawn once"
    _, err = unbroken.communicate(timeout=120)
    assert unbroken.returncode == 0, err
    assert len(shards(teacher)) == 10
    assert shards(teacher) == shards(other)
    assert not list(teacher.glob("pairs/*/*.part"))
    [made] = [json.loads(path.read_text()) for path in teacher.glob("pairs/*/pairs.json")]
    assert made["config"]["type"] == "experiment.Experiment"
    assert made["sampler"]["steps"] == 1500
    data = replace(
        toy_reflow.data, teacher=str(teacher), pairs=640, sampler=replace(toy_reflow.data.sampler, steps=1500)
    )
    drawn = pairs_of(data)
    assert drawn["x"].shape == drawn["noise"].shape == (640, 2)
    assert len(np.unique(drawn["noise"], axis=0)) == 640, "none is drawn twice"  # two may end in one float32 point
    digests = [json.loads((tmp_path / f"{n}_student/summary.json").read_text()) for n in ("teacher", "other")]
    assert digests[0]["state_digest"] == digests[1]["state_digest"]


def test_a_pair_is_the_samplers_own_and_lies_on_the_ode(teacher):
    data = reflow(teacher, sampler=replace(HEUN, steps=200))
    data.prepare()
    drawn = pairs_of(data)
    keys = jax.vmap(lambda i: jax.random.fold_in(named_key(0, "pairs"), i))(jnp.arange(64))
    np.testing.assert_allclose(drawn["noise"], first_noise(keys, (2,)), atol=1e-6)
    run = finished("--teacher", str(teacher))
    variables, model = run.averaged(Mesh(data=1).build()), run.model
    assert isinstance(model, Denoiser)
    own = jax.jit(lambda v, k: data.sampler(model, v, k, None, (2,)).x)(variables, keys)
    np.testing.assert_allclose(drawn["x"], own, atol=1e-5)

    times = np.linspace(1.0, 1e-3, 400).astype(np.float32)  # the velocity is 0/0 at t = 0
    u = jax.jit(lambda x, t: model.velocity(variables, x, jnp.broadcast_to(t, x.shape[:1])))
    x = jnp.asarray(drawn["noise"])
    for t, next_t in itertools.pairwise(times):
        x = x + (next_t - t) * u(x + (next_t - t) / 2 * u(x, t), (t + next_t) / 2)
    np.testing.assert_allclose(drawn["x"], x, atol=0.01)
    assert np.abs(drawn["x"] - drawn["noise"]).max() > 0.3, "the teacher moves nothing, and the test shows nothing"


@pytest.mark.thorough
def test_more_pairs_extend_those_that_are_there(teacher):
    reflow(teacher, 32).prepare()
    few = shards(teacher)
    assert list(few) == ["00000.npz", "00001.npz"]
    reflow(teacher, 64).prepare()
    many = shards(teacher)
    assert len(many) == 4
    assert {name: many[name] for name in few} == few
    assert_equal(pairs_of(reflow(teacher, 32)), {k: v[:32] for k, v in pairs_of(reflow(teacher, 64)).items()})
    for other in ({"seed": 1}, {"sampler": replace(HEUN, steps=11)}, {"shard": 32}):
        with pytest.raises(MissingDataError, match=r"train\.py draws pairs before it trains"):
            pairs_of(reflow(teacher, **other))  # kept apart


@pytest.mark.parametrize("damage", tiers(["truncated", "a byte", "other shape", "empty"], first=("a byte",)))
def test_a_damaged_shard_is_drawn_again(teacher, capfd, damage):
    data = reflow(teacher)
    data.prepare()
    whole = shards(teacher)
    [path] = teacher.glob("pairs/*/00002.npz")
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # a number of the first array
    kinds = {"truncated": bytes(content[:300]), "a byte": bytes(content), "empty": b""}
    if damage == "other shape":
        np.savez(path, x=np.zeros((15, 2), np.float32), noise=np.zeros((15, 2), np.float32))
    else:
        path.write_bytes(kinds[damage])
    path.with_name("00002.npz.part").write_bytes(b"half a shard of a killed process")
    capfd.readouterr()
    data.prepare()
    out = capfd.readouterr().out
    assert out.count("warning:") == 1
    assert "00002.npz cannot be read" in out
    assert "pairs: 48 of 64 are in" in out
    assert shards(teacher) == whole
    assert not list(teacher.glob("pairs/*/*.part"))
    data.prepare()
    assert capfd.readouterr().out == ""


@pytest.mark.thorough
def test_labels_and_the_test_split_are_the_original_datas(tmp_path):
    net = MLP(width=16, depth=1, num_classes=10)
    conditional = replace(
        digits,
        **{"model": replace(digits.model, net=net), "sampler": NoSampler(), "mesh": Mesh(data=1)},
        **{"metrics": (), "sample_every": 0, "steps": 0},
    )
    train(conditional, tmp_path / "first")
    data = reflow(tmp_path / "first", 32, sampler=Diffusion(solver=Heun(), steps=2))
    data.prepare()
    assert (data.num_classes, data.shape, data.bin_width) == (10, (8, 8, 1), Digits().bin_width)
    drawn = pairs_of(data)
    np.testing.assert_array_equal(drawn["label"], np.arange(32) % 10)
    assert {k: (v.shape[1:], v.dtype) for k, v in data.zeros(3).items()} == {
        k: (v.shape[1:], v.dtype) for k, v in drawn.items()
    }
    assert_equal(data.arrays("test", 20), Digits().arrays("test", 20))
    assert_equal(data.source("test").read(np.arange(3), 0, np.arange(3)), Digits().arrays("test", 3))
    # A chain: this run's student is the next one's teacher.
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    config.save(replace(conditional, data=data), tmp_path / "second" / "config.json")
    again = reflow(tmp_path / "second")
    assert again.original == Digits()
    assert again.runs == (str(tmp_path / "second"), str(tmp_path / "first"))
    with pytest.raises(UserError, match="is what this run comes from and cannot be its own folder"):
        train(replace(conditional, data=again), tmp_path / "first", restart=True)
    assert (tmp_path / "first" / "summary.json").exists()


@pytest.mark.thorough
def test_training_on_pairs_runs_and_resumes(teacher, tmp_path):
    experiment = replace(PAIRED, data=reflow(teacher))
    unbroken = train(experiment, tmp_path / "student")
    assert unbroken["steps"] == 20
    shutil.rmtree(tmp_path / "student" / "checkpoints" / "20")
    (tmp_path / "student" / "summary.json").unlink()
    assert train(experiment, tmp_path / "student")["state_digest"] == unbroken["state_digest"]
    # --restart on the teacher takes its pairs away, and writes its settings anew.
    train(replace(ONE, steps=1), teacher, restart=True)
    assert not (teacher / "pairs").exists()
    assert json.loads((teacher / "config.json").read_text())["steps"] == 1
    assert not (teacher / "evaluation.json").exists()
    # The rest of the student's steps would be on other pairs than the first.
    shutil.rmtree(tmp_path / "student" / "checkpoints" / "20")
    (tmp_path / "student" / "summary.json").unlink()
    with pytest.raises(UserError, match="has been trained anew since"):
        train(experiment, tmp_path / "student")
    assert not (teacher / "pairs").exists()


@pytest.mark.thorough
def test_the_stages_tiny_forms_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, tiny in (
        ("toy_flow", ONE),
        ("toy_reflow", replace(toy_reflow, metrics=())),
        ("toy_distill", toy_distill),
    ):
        summary = train(replace(tiny, sample_every=0, mesh=Mesh(data=1)), Path("runs") / f"{name}_tiny")
        assert np.isfinite(summary["loss"])
    assert 0 <= summary["two_sample_accuracy"] <= 1


def test_the_command_line_reaches_all_of_it():
    changed = parse(
        toy,
        [
            "--data",
            "reflow",
            "--data.teacher",
            "runs/a",
            "--data.sampler.solver",
            "dopri5",
            "--data.sampler.steps",
            "50",
        ],
        "t",
    )
    assert isinstance(changed.data, Reflow)
    assert (changed.data.teacher, changed.data.sampler.solver) == ("runs/a", Dopri5())
    assert changed.data.sampler.steps == 50
    assert parse(toy_reflow, ["--data.teacher", "b", "--teacher", "c"], "t").teacher == "c"


def no_run(folder: Path) -> Reflow:
    shutil.rmtree(folder)
    return reflow(folder)


def no_summary(folder: Path) -> Reflow:
    (folder / "summary.json").unlink()
    return reflow(folder)


def no_steps(folder: Path) -> Reflow:
    shutil.rmtree(folder / "checkpoints")
    return reflow(folder)


def no_denoiser(folder: Path) -> Reflow:
    config.save(replace(ONE, model=Constant(), sampler=NoSampler()), folder / "config.json")
    return reflow(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_run, "--data.teacher .* holds no run"),
        (no_summary, "is trained, but has no summary.json yet; the command that began it finishes it: python train.py"),
        (
            no_steps,
            r"stands at step 0 of 60; the command that began it finishes it: python train.py EXPERIMENT --workdir",
        ),
        (no_denoiser, "pairs are drawn from a Denoiser, not a Constant"),
        (lambda run: reflow(run, sampler=replace(HEUN, solver=DDPM())), "must draw no noise.* DDPM.* does"),
        (lambda run: reflow(run, sampler=replace(HEUN, steps=0)), "--data.sampler cannot draw from .*at least 1 step"),
    ],
    ids=["no run", "no summary", "no steps", "no denoiser", "stochastic", "no steps of the sampler"],
)
def test_a_wrong_teacher_is_refused_before_anything_is_made(teacher, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        train(replace(PAIRED, data=make(teacher)), tmp_path / "student")
    assert not (tmp_path / "student").exists()
    assert not (teacher / "pairs").exists()


def test_wrong_settings_come_before_the_pairs(teacher, tmp_path):
    with pytest.raises(UserError, match="conditioned on 3 classes, but the data has 0"):
        train(replace(PAIRED, data=reflow(teacher), model=replace(toy.model, net=MLP(num_classes=3))), tmp_path / "a")
    with pytest.raises(UserError, match="cannot be its own folder"):
        train(replace(PAIRED, data=reflow(teacher)), teacher, restart=True)
    with pytest.raises(UserError, match="needs data that brings its own noise"):
        train(PAIRED, tmp_path / "a")
    with pytest.raises(ValueError, match="pairs=17 is not a positive multiple of shard=16"):
        reflow(teacher, 17)
    assert not (teacher / "pairs").exists()
    assert (teacher / "summary.json").exists()


@pytest.mark.thorough
def test_initial_parameters_are_another_runs_average(teacher):
    plan = Plan(replace(ONE, initial=str(teacher)))
    state = plan.initial()
    average = finished("--initial", str(teacher)).averaged(plan.mesh)["params"]
    assert_equal(state.params, average)
    assert_equal(state.average, average)
    assert int(state.step) == 0
    pointers = [
        {leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
        for tree in (state.params, state.average)
    ]
    assert not pointers[0] & pointers[1], "a donated state may hold no buffer twice"
    plan.train_step(state, plan.batches[0])
    wider = replace(ONE, initial=str(teacher), model=replace(toy.model, net=MLP(width=24, depth=2)))
    with pytest.raises(UserError, match=r"--initial .* do not fit this model's: .*float32\[.*16.*\] there and .*24"):
        Plan(wider)
    with pytest.raises(UserError, match="cannot be its own folder"):
        train(replace(ONE, initial=str(teacher)), teacher, restart=True)
    (teacher / "summary.json").unlink()
    with pytest.raises(UserError, match=r"--initial .*is trained, but has no summary"):
        Plan(replace(ONE, initial=str(teacher)))


def jump(own: Denoiser | None) -> Jump:
    return Jump(net=MLP(width=16, depth=2), path=Rectified(), predicts="velocity", teacher=own)


@pytest.mark.thorough
def test_a_models_teacher_is_given_another_runs_average(teacher):
    plan = Plan(replace(ONE, model=jump(toy.model), teacher=str(teacher), precision="bfloat16"))
    state = plan.initial()
    assert_equal(state.model["teacher"], finished("--teacher", str(teacher)).averaged(plan.mesh)["params"])
    assert jax.tree.structure(state) == jax.tree.structure(plan.state_like)
    for own, run, message in (
        (toy.model, "", "a teacher needs a run: .*--teacher RUN"),
        (None, str(teacher), "this experiment's Jump has no teacher"),
        (
            replace(toy.model, net=MLP(width=24, depth=2)),
            str(teacher),
            "must be that run's model; net.width: 16 in the run",
        ),
        (replace(toy.model, path=Cosine()), str(teacher), "must be that run's model; path: "),
        (toy.model, str(teacher / "none"), "--teacher .*none: .*holds no run"),
    ):
        with pytest.raises(UserError, match=message):
            Plan(replace(ONE, model=jump(own), teacher=run))
    (teacher / "summary.json").unlink()
    with pytest.raises(UserError, match=r"--teacher .*is trained, but has no summary"):
        Plan(replace(ONE, model=jump(toy.model), teacher=str(teacher)))


@pytest.mark.thorough
def test_a_resumed_run_is_handed_nothing(teacher, tmp_path, monkeypatch):
    experiment = replace(ONE, model=jump(toy.model), teacher=str(teacher))
    unbroken = train(experiment, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    monkeypatch.setattr(Handover, "into", lambda *_: pytest.fail("handed over again"))
    assert train(experiment, tmp_path / "run")["state_digest"] == unbroken["state_digest"]
    with pytest.raises(pytest.fail.Exception, match="handed over again"):
        train(experiment, tmp_path / "other")
