"""The loop: one device equals eight, accumulated equals whole, checkpoints, digests, stops."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.digits_ddpm import tiny as digits
from experiments.toy_flow import tiny as toy
from losses.denoising import Denoising
from losses.loss import Objective
from metrics.likelihood import Likelihood
from models.denoiser import Denoiser
from models.mlp import MLP
from samplers.sampler import NoSampler, Sampler
from samplers.solver import Samples
from tests.conftest import tiers
from training.checkpoint import Store
from training.draw import Drawer
from training.errors import Stopped, UserError
from training.experiment import Checkpoints
from training.inputs import example_batch
from training.loop import train
from training.measure import measure
from training.mesh import Mesh, put_batch
from training.optimizer import Optimizer, clipped
from training.plan import Plan
from training.run import Run
from training.state import state_digest
from training.step import named_key

ONE = replace(digits, mesh=Mesh(data=1), sample_every=0, metrics=())


def steps(experiment, n=4):
    """The state and the losses after n steps."""
    plan = Plan(experiment)
    state, losses = plan.initial(), []
    for i in range(n):
        state, metrics = plan.train_step(state, put_batch(plan.batches[i], plan.batch_sharding))
        losses.append(float(metrics["loss"]))
    return state, losses


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


PLANNED = replace(digits, model=Denoiser(net=MLP(width=32, depth=6), path=digits.model.path), remat="nested(2)")


@pytest.mark.parametrize(
    "experiment",
    tiers({"digits": digits, "toy": toy, "planned reversal": PLANNED}, first=("toy",)),
)
def test_one_device_equals_eight(experiment):
    """Losses to 1e-5, parameters to 1e-4 relative: only the order of sums differs."""
    plain = Optimizer(method="sgd", learning_rate=0.1, clip=0.0)  # Adam, or clipping, would hide a factor
    meshes = Mesh(data=1), Mesh(data=4, fsdp=2, fsdp_from=64)
    one, eight = (steps(replace(experiment, mesh=mesh, optimizer=plain)) for mesh in meshes)
    np.testing.assert_allclose(one[1], eight[1], rtol=1e-5)
    assert_close(one[0].params, eight[0].params)
    assert len(jax.tree.leaves(eight[0].params)[0].sharding.device_set) == 8


@pytest.mark.thorough
def test_what_measures_and_draws_has_no_checkpointing():
    """A reversal by a plan has no forward mode, which a likelihood takes; the run is trained by then."""
    run = replace(PLANNED, steps=1, metrics=(Likelihood(examples=8, batch_size=8),))
    plan = Plan(run)
    assert np.isfinite(measure(plan, plan.initial())["bits_per_dim"])

    @dataclass(frozen=True, kw_only=True)
    class Pushed(Sampler):
        def __call__(self, model, variables, keys, condition, shape, trajectory=False):
            x, t = jnp.ones((len(keys), *shape)), jnp.full(len(keys), 0.5)
            return Samples(jax.jvp(lambda x: model.denoise(variables, x, t), (x,), (x,))[1])

        def network_calls(self):
            return 1

    plan = Plan(replace(run, sampler=Pushed()))
    assert plan.samples(plan.initial(), 3).shape == (3, 8, 8, 1)


def test_accumulated_gradients_equal_the_whole_batchs():
    """With a loss that draws nothing, four parts of 8 are one batch of 32."""

    @dataclass(frozen=True, kw_only=True)
    class Fixed(Denoising):
        def __call__(self, model, variables, key, batch, step):
            t = jnp.full(batch["x"].shape[:1], 0.3)
            error = model.raw(variables, batch["x"], t) - batch["x"]
            return Objective(jnp.mean(error**2, axis=(1, 2, 3)), {}, variables["state"])

    # Adam, and a gradient that is clipped, would hide a factor.
    plain = replace(ONE, loss=Fixed(), optimizer=Optimizer(method="sgd", learning_rate=0.1, clip=0.0))
    whole, parts = steps(plain), steps(replace(plain, accumulate=4))
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-5)
    assert_close(whole[0].params, parts[0].params)


def test_average_follows_the_stated_decay():
    experiment = replace(ONE, ema=0.5)
    plan = Plan(experiment)
    state = plan.initial()
    average = jax.tree.map(np.asarray, state.params)
    for n in range(5):
        state, _ = plan.train_step(state, put_batch(plan.batches[n], plan.batch_sharding))
        decay = min(0.5, (1 + n) / (10 + n))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * np.asarray(p), average, state.params)  # noqa: B023
    assert_close(state.average, average, atol=1e-6)


def test_a_gradient_is_clipped_as_optax_clips_it_with_its_norm_given_or_not():
    plain = optax.clip_by_global_norm(0.5)
    for size in (0.01, 0.25, 10.0):
        gradients = {"a": size * jnp.arange(3.0), "b": size * jnp.ones((2, 2))}
        expected, state = plain.update(gradients, plain.init(gradients))
        for told in ({}, {"norm": optax.global_norm(gradients)}):
            chex.assert_trees_all_equal(
                clipped(0.5).update(gradients, clipped(0.5).init(gradients), **told)[0], expected
            )
    halved, _ = clipped(0.5).update(gradients, state, norm=jnp.asarray(1.0))  # the norm it is told is the one it takes
    chex.assert_trees_all_equal(halved, jax.tree.map(lambda leaf: 0.5 * leaf, gradients))


def test_optimizer_warms_up_and_decays():
    schedule = Optimizer(learning_rate=1.0, warmup=10, decay="cosine").schedule(110)
    np.testing.assert_allclose([schedule(i) for i in (0, 4, 9)], [0.1, 0.5, 1.0], rtol=1e-6)
    assert float(schedule(60)) == pytest.approx(0.5)
    assert float(schedule(110)) == pytest.approx(0.0, abs=1e-6)
    for decay in ("cosine", "linear"):
        schedule = Optimizer(learning_rate=1.0, warmup=10, decay=decay, final=0.1).schedule(110)
        np.testing.assert_allclose([schedule(i) for i in (9, 60, 110)], [1.0, 0.55, 0.1], rtol=1e-6)


def test_the_papers_rate():
    """1706.03762 eq. 3, d 512 and w 40, whose steps are counted from 1."""
    schedule = Optimizer(learning_rate=(512 * 40) ** -0.5, warmup=40, decay="inverse_sqrt").schedule(1000)
    t = np.arange(1, 400)
    expected = 512**-0.5 * np.minimum(t**-0.5, t * 40**-1.5)
    np.testing.assert_allclose([float(schedule(step - 1)) for step in t], expected, rtol=1e-5)


def test_muon_turns_a_kernels_gradient_into_an_orthogonal_one_and_adam_has_the_rest():
    """Each matrix of a stack by itself: singular values within Muon's coefficients of 1, a third axis or none."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (8, 16), "stacked_kernel": (3, 8, 8), "bias": (8,), "table": (5, 8)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    optimizer = Optimizer(method="muon", muon_rate=0.5, learning_rate=0.25, clip=0.0).build(10)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    for matrix, scale in ((update["kernel"], 2**0.5), *((layer, 1.0) for layer in update["stacked_kernel"])):
        values = np.linalg.svd(matrix, compute_uv=False) / (0.5 * scale)
        assert values.min() > 0.5
        assert values.max() < 1.3
    assert np.vdot(update["kernel"], gradient["kernel"]) < 0.0
    for layer, own in zip(update["stacked_kernel"], gradient["stacked_kernel"], strict=True):
        assert np.vdot(layer, own) < 0.0
    for name in ("bias", "table"):  # Adam's first step is its rate, against the gradient
        np.testing.assert_allclose(np.sign(update[name]), -np.sign(gradient[name]))
        assert np.abs(np.abs(update[name]) / np.abs(update[name]).mean() - 1.0).max() < 0.01
    assert float(Optimizer(learning_rate=0.3).schedule(10)(7)) == pytest.approx(0.3)


def test_the_chain_clips_before_it_steps():
    params = {"w": jnp.zeros(3)}
    chain = Optimizer(clip=1.0).build(10)
    for size, expected in ((0.3, 0.3), (100.0, 1.0)):  # Adam's first moment is a tenth of the gradient it was given
        _, state = chain.update({"w": jnp.asarray([size, 0.0, 0.0])}, chain.init(params), params)
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
        [moment] = [leaf for name, leaf in leaves.items() if ".mu" in name]
        np.testing.assert_allclose(moment[0], 0.1 * expected, rtol=1e-5)


def test_the_loss_of_a_short_run_falls(tmp_path):
    summary = train(replace(ONE, steps=150, batch_size=64, optimizer=Optimizer(learning_rate=3e-3)), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert summary["steps"] == 150
    assert rows[-1]["step"] == 150


def test_a_finished_run_has_everything_and_can_be_asked_again(tmp_path):
    summary = train(digits, tmp_path)
    for name in ("config.json", "metrics.jsonl", "summary.json", "samples/step_0000020.png", "tensorboard"):
        assert (tmp_path / name).exists(), name
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    again = train(digits, tmp_path)
    assert again["state_digest"] == summary["state_digest"]
    assert again["loss"] == summary["loss"]
    assert Run(tmp_path).experiment() == digits


def test_resumed_equals_unbroken_in_every_bit(tmp_path):
    """Stopped by hand at step 10 of 20: parameters, average, optimiser, data position."""
    experiment = replace(ONE, checkpoints=Checkpoints(every=10))
    unbroken = train(experiment, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    (tmp_path / "summary.json").unlink()
    resumed = train(experiment, tmp_path)
    assert resumed["state_digest"] == unbroken["state_digest"]
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)), "steps taken twice are logged once"


def test_the_digest_sees_one_bit():
    state, _ = steps(ONE, 1)
    assert state_digest(state) == state_digest(state)
    assert state_digest(state) != state_digest(state.replace(step=state.step + 1))
    leaves, tree = jax.tree.flatten(state.params)
    leaves[0] = np.asarray(leaves[0]).copy()
    leaves[0].flat[0] = np.nextafter(leaves[0].flat[0], np.inf)
    assert state_digest(state) != state_digest(state.replace(params=tree.unflatten(leaves)))


@pytest.mark.thorough
def test_keeps_the_latest_and_every_so_many(tmp_path):
    train(replace(ONE, checkpoints=Checkpoints(every=2, latest=2, keep_every=8)), tmp_path)
    assert Store(tmp_path).steps() == [8, 16, 18, 20]


@pytest.mark.parametrize("damage", tiers(["truncated", "overwritten", "metadata gone"], first=("overwritten",)))
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capfd, damage):
    experiment = replace(ONE, checkpoints=Checkpoints(every=10))
    unbroken = train(experiment, tmp_path)
    newest = tmp_path / "checkpoints" / "20"
    for path in newest.rglob("*"):
        if damage == "metadata gone" and path.name == "_METADATA":
            path.unlink()
        elif damage != "metadata gone" and path.is_file() and path.parent.name == "d":
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\0" * len(content))
    resumed = train(experiment, tmp_path)
    said = capfd.readouterr().out
    assert "warning: checkpoint 20 cannot be read" in said
    assert "resumed" in said
    assert "at step 10 of 20" in said
    assert resumed["state_digest"] == unbroken["state_digest"]
    assert (tmp_path / "damaged" / "20").is_dir()
    assert Store(tmp_path).steps() == [10, 20]


def test_nothing_readable_is_said_and_nothing_is_overwritten(tmp_path):
    experiment = replace(ONE, checkpoints=Checkpoints(every=20))
    train(experiment, tmp_path)
    for path in (tmp_path / "checkpoints" / "20").rglob("_METADATA"):
        path.unlink()
    for _ in range(2):  # asking again does not start over either
        with pytest.raises(UserError, match=r"none of the checkpoints \[20\].*--restart starts over"):
            train(experiment, tmp_path)
    assert (tmp_path / "checkpoints" / "20").is_dir()


def test_other_settings_are_refused_and_named(tmp_path):
    train(ONE, tmp_path)
    before = (tmp_path / "summary.json").read_text()
    other = replace(ONE, seed=5, model=Denoiser(net=MLP(width=32, depth=3), path=digits.model.path))
    with pytest.raises(UserError) as refusal:
        train(other, tmp_path)
    assert "model.net.depth: 2 in the run, 3 asked for" in str(refusal.value)
    assert "seed: 0 in the run, 5 asked for" in str(refusal.value)
    assert (tmp_path / "summary.json").read_text() == before
    assert train(replace(other, steps=1), tmp_path, restart=True)["steps"] == 1


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    experiment = replace(ONE, loss=Exploding(at=14), checkpoints=Checkpoints(every=5))
    with pytest.raises(Stopped, match=r"step 15: .*loss is nan.*last good checkpoint is step 10") as stop:
        train(experiment, tmp_path)
    assert stop.value.code == 1
    store = Store(tmp_path)
    assert store.steps() == [5, 10]
    restored = store.restore(Plan(experiment).state_like)
    assert restored is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored[0].params))


@dataclass(frozen=True, kw_only=True)
class Exploding(Denoising):
    """Not a number at one step: the first that has taken `at` steps."""

    at: int = 14

    def __call__(self, model, variables, key, batch, step):
        result = super().__call__(model, variables, key, batch, step)
        return result._replace(value=jnp.where(step == self.at, jnp.nan, result.value))


@dataclass(frozen=True, kw_only=True)
class Averaged(Denoising):
    """Of the batch, where it is to be of each example."""

    def __call__(self, model, variables, key, batch, step):
        result = super().__call__(model, variables, key, batch, step)
        return result._replace(value=jnp.mean(result.value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": Averaged()}, r"Averaged gave a value of shape \[\]; it is one an example, \[32\]"),
        ({"batch_size": 31, "mesh": Mesh(data=8)}, "batch_size=31 does not divide over 8 devices"),
        ({"mesh": Mesh(data=9)}, "mesh.data=9, .* are 9 devices, but there are 8 devices"),
        ({"model": replace(digits.model, net=MLP(num_classes=3))}, "conditioned on 3 classes, but the data has 10"),
        ({"sampler": replace(digits.sampler, steps=0)}, "at least 1 step, got steps=0"),
        ({"sampler": replace(digits.sampler, steps=1001)}, "at most as many steps as it was trained with"),
    ],
)
def test_a_wrong_setting_fails_before_the_first_step(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(replace(ONE, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"ema": 1.0}, {"steps": -1}, {"accumulate": 3}])
def test_impossible_settings_are_refused_by_the_experiment(change):
    with pytest.raises(ValueError, match="="):
        replace(digits, **change)


def test_precision_and_remat_reach_every_net_that_leaves_them_open():
    experiment = replace(digits, precision="bfloat16", remat="full")
    net = experiment.resolved_model().net
    assert (net.dtype, net.remat) == ("bfloat16", "full")
    own = replace(experiment, model=replace(digits.model, net=MLP(dtype="float32", remat="none")))
    assert (own.resolved_model().net.dtype, own.resolved_model().net.remat) == ("float32", "none")
    state, losses = steps(replace(experiment, mesh=Mesh(data=1)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(losses).all()


def test_samples_do_not_depend_on_batch_size_or_mesh():
    """The drawer's padding and splitting: equal to 1e-5."""
    plan = Plan(ONE)
    state = plan.initial()
    variables = {"params": jax.tree.map(lambda p: np.asarray(p) + 0.01, state.params), "state": {}}
    key = named_key(0, "sample")
    whole = Drawer(plan.model, ONE.sampler, (8, 8, 1), Mesh(data=1).build())(variables, key, 11).x
    assert whole.shape == (11, 8, 8, 1)
    for mesh, batch in ((1, 4), (8, 256), (8, 8)):
        drawer = Drawer(plan.model, ONE.sampler, (8, 8, 1), Mesh(data=mesh).build(), batch)
        np.testing.assert_allclose(drawer(variables, key, 11).x, whole, atol=1e-5)
    traced = Drawer(plan.model, ONE.sampler, (8, 8, 1), Mesh(data=8).build(), 8)(variables, key, 11, None, True)
    assert traced.trajectory is not None
    assert traced.trajectory.shape == (6, 11, 8, 8, 1)
    np.testing.assert_allclose(traced.trajectory[-1], whole, atol=1e-5)


def test_sampling_restores_the_average_alone(tmp_path):
    train(ONE, tmp_path)
    run = Run(tmp_path)
    model = run.experiment().resolved_model()
    variables, step = run.averaged(model, example_batch(ONE), Mesh(data=1).build())
    assert step == 20
    restored = Store(tmp_path).restore(Plan(ONE).state_like)
    assert restored is not None
    assert_close(variables["params"], restored[0].average, rtol=0, atol=0)


def test_a_run_of_no_steps_saves_its_start(tmp_path):
    summary = train(replace(ONE, steps=0), tmp_path)
    assert summary["steps"] == 0
    assert Store(tmp_path).steps() == [0]


def test_a_model_that_draws_nothing_trains(tmp_path):
    summary = train(replace(ONE, sampler=NoSampler(), steps=3), tmp_path)
    assert math.isfinite(summary["loss"])


@pytest.mark.parametrize("name", tiers(["digits_ddpm", "digits_ve", "toy_flow", "mnist_ddpm"], first=("digits_ddpm",)))
def test_tiny_experiments_run(tmp_path: Path, name):
    from tests.conftest import tfds_has
    from training.cli import load_experiment

    if name == "mnist_ddpm" and not tfds_has("mnist"):
        pytest.skip("mnist is not prepared; set TFDS_DATA_DIR to where it is")
    experiment = load_experiment(name, tiny=True)
    summary = train(experiment, tmp_path)
    assert math.isfinite(summary["loss"])
    assert 0 <= summary["two_sample_accuracy"] <= 1
    assert list((tmp_path / "samples").glob("*.png"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", tiers(["cifar10_ddpm", "cifar10_ve"], first=("cifar10_ve",)))
def test_cifar10s_tiny_form_takes_a_step_on_zeros(name):
    """The set itself cannot be embedded; the experiment's step is compiled and run on images of its shape."""
    from training.cli import load_experiment

    tiny = load_experiment(name, tiny=True)
    batch = {"x": jnp.zeros((8, 32, 32, 3)), "label": jnp.zeros(8, jnp.int32)}
    variables = jax.jit(tiny.model.init)(jax.random.key(0), batch)
    step = jnp.zeros((), jnp.int32)
    value = jax.jit(lambda v: tiny.loss(tiny.model, v, jax.random.key(1), batch, step).value)(variables)
    assert value.shape == (8,)
    assert np.isfinite(value).all()


def test_weight_decay_is_of_kernels_alone():
    """A scan's stacked biases have two axes too: it is the name that tells."""
    params = {"blocks": {"kernel": np.ones((3, 2, 2)), "bias": np.ones((3, 2))}, "log_scale": np.ones(4)}
    optimizer = Optimizer(learning_rate=0.1, weight_decay=0.5, clip=0.0).build(10)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["kernel"], -0.05)
    np.testing.assert_array_equal(updates["blocks"]["bias"], 0.0)
    np.testing.assert_array_equal(updates["log_scale"], 0.0)
