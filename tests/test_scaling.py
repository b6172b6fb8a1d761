"""Loss scaling: steps that overflow are not taken, powers of two change nothing, resumed is unbroken."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.digits_ddpm import tiny as digits
from experiments.partial_fc_synthetic import tiny as partial_fc
from losses.denoising import Denoising
from losses.fused_head import HeadSGD
from losses.identification import Identification
from losses.margin_softmax import CosFace
from tests.conftest import AS_USERS_COMPILE
from training.cli import parse
from training.errors import Stopped, UserError
from training.experiment import Checkpoints
from training.loop import train
from training.mesh import Mesh, put_batch
from training.optimizer import Optimizer
from training.plan import Plan
from training.scaling import Dynamic
from training.state import state_digest

ONE = replace(digits, mesh=Mesh(data=1), sample_every=0, metrics=())
HALF = replace(ONE, precision="float16", loss_scaling=Dynamic())
FACES = replace(partial_fc, mesh=Mesh(data=1), metrics=())


@jax.custom_vjp
def steep(x, slope):
    """x, whose gradient passes through float16, times a slope that is then taken away again."""
    return x


def _back(slope, g):
    return ((g.astype(jnp.float16) * slope.astype(jnp.float16)).astype(jnp.float32) / slope, None)


steep.defvjp(lambda x, slope: (x, slope), _back)


@dataclass(frozen=True, kw_only=True)
class Overflowing(Denoising):
    """The gradient of the mean is 2^15 in float16 when the scale is 2^9, and not finite above."""

    def __call__(self, model, variables, key, batch, step):
        found = super().__call__(model, variables, key, batch, step)
        mean = steep(jnp.mean(found.value), jnp.asarray(64.0))
        return found._replace(value=jnp.full_like(found.value, 1.0) * mean)


@dataclass(frozen=True, kw_only=True)
class Breaking(Identification):
    """Identification, whose gradient is not finite at step 1, though its value is."""

    def __call__(self, model, variables, key, batch, step):
        found = super().__call__(model, variables, key, batch, step)
        return found._replace(value=steep(found.value, jnp.where(step == 1, jnp.inf, 1.0)))


def steps(experiment, n):
    """The states, the first included, and the metrics of n steps."""
    plan = Plan(experiment)
    state = plan.initial()
    step = plan.train_step.lower(plan.state_like, plan.batch_like).compile(compiler_options=AS_USERS_COMPILE)
    states, rows = [jax.tree.map(np.array, state)], []
    for i in range(n):
        state, metrics = step(state, put_batch(plan.batches[i], plan.batch_sharding))
        states.append(jax.tree.map(np.array, state))
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def differ(a, b):
    return any(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("accumulate", [1, 4])
def test_steps_that_overflow_are_not_taken_and_the_scale_halves_until_one_is(accumulate):
    states, rows = steps(replace(HALF, loss=Overflowing(), accumulate=accumulate), 8)
    assert [row["skipped"] for row in rows] == [1.0] * 6 + [0.0] * 2
    assert [row["loss_scale"] for row in rows] == [2.0**n for n in (15, 14, 13, 12, 11, 10, 9, 9)]
    for (before, after), row in zip(pairwise(states), rows, strict=True):
        assert after.step == before.step + 1
        assert all(math.isfinite(value) for value in row.values())
        rest = after.replace(step=before.step, scaling=before.scaling)
        assert differ(rest, before) != bool(row["skipped"])
        assert (row["gradient_norm"] == 0.0) == bool(row["skipped"])
    assert differ(states[-1].params, states[0].params)
    assert differ(states[-1].average, states[0].average)


def test_a_step_not_taken_leaves_the_models_state_and_its_own_head_where_they_are():
    loss = Breaking(margin=CosFace(), update=HeadSGD())
    states, rows = steps(replace(FACES, loss=loss, loss_scaling=Dynamic(initial=1.0)), 3)
    assert [row["skipped"] for row in rows] == [0.0, 1.0, 0.0]
    head = [state.model["head"] for state in states]
    assert [differ(a, b) for a, b in pairwise(head)] == [True, False, True]
    assert not differ(states[1].model, states[2].model)


@pytest.mark.thorough
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_power_of_two_changes_no_bit_in_float32_with_clipping(accumulate):
    experiment = replace(ONE, accumulate=accumulate)
    plain, _ = steps(experiment, 4)
    scaled, rows = steps(replace(experiment, loss_scaling=Dynamic(every=2)), 4)
    assert [row["loss_scale"] for row in rows] == [2.0**15, 2.0**15, 2.0**16, 2.0**16]
    assert plain[-1].scaling is None
    assert not differ(scaled[-1].replace(scaling=None), plain[-1])


@pytest.mark.thorough
def test_a_head_that_its_loss_updates_has_no_part_in_the_scale():
    """Its gradient is the loss's own. Of the rest, other products are fused, and the last bit is another."""
    (_, *plain), _ = steps(FACES, 3)
    (_, *scaled), _ = steps(replace(FACES, loss_scaling=Dynamic()), 3)
    for a, b in zip(plain, scaled, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8), a, b.replace(scaling=None))


def test_the_scale_grows_after_so_many_good_steps_in_a_row_within_its_bounds():
    scaling, scales = Dynamic(initial=4.0, every=3, largest=8.0, smallest=2.0), []
    now = scaling.begin()
    for finite in (1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0):
        now = scaling.after(now, jnp.asarray(bool(finite)))
        scales.append(float(now.scale))
    assert scales == [4, 4, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8, 4, 2, 2, 2]


@pytest.mark.thorough
def test_resumed_equals_unbroken_with_its_scale(tmp_path):
    experiment = replace(HALF, loss=Overflowing(), checkpoints=Checkpoints(every=10))
    experiment = replace(experiment, log_every=1, loss_scaling=Dynamic(every=3))
    unbroken = train(experiment, tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    resumed = train(experiment, tmp_path)
    assert resumed["state_digest"] == unbroken["state_digest"]
    again = (tmp_path / "metrics.jsonl").read_text()
    scales, scales_again = (
        [(row["loss_scale"], row["skipped"]) for row in map(json.loads, text.splitlines())] for text in (rows, again)
    )
    assert scales == scales_again
    assert (2.0**10, 1.0) in scales[9:], "grown again, and too far"


def test_a_loss_that_is_not_finite_stops_a_scaled_run_too(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Exploding(Denoising):
        def __call__(self, model, variables, key, batch, step):
            found = super().__call__(model, variables, key, batch, step)
            return found._replace(value=jnp.where(step == 4, jnp.nan, found.value))

    with pytest.raises(Stopped, match="step 5: loss is nan"):
        train(replace(HALF, loss=Exploding()), tmp_path)


def test_without_scaling_the_state_has_no_leaf_of_it():
    state, scaled = Plan(ONE).initial(), Plan(HALF).initial()
    assert not any("scaling" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    assert state_digest(scaled) != state_digest(state)


@pytest.mark.thorough
def test_float16_computes_in_float16_and_asks_for_a_scale(tmp_path):
    with pytest.raises(UserError, match=r"precision=float16 .*--loss-scaling dynamic"):
        train(replace(HALF, loss_scaling=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert getattr(Plan(HALF).model, "net").dtype == "float16"  # noqa: B009
    plain = Optimizer(method="sgd", learning_rate=0.1, clip=0.0)  # Adam's first steps have a length of their own
    moved = []
    for experiment in (HALF, ONE):
        states, rows = steps(replace(experiment, optimizer=plain), 3)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(states[-1].params))
        assert sum(row.get("skipped", 0.0) for row in rows) == 0.0
        way = jax.tree.map(lambda a, b: np.ravel(b - a), Plan(experiment).initial().params, states[-1].params)
        moved.append(np.concatenate(jax.tree.leaves(way)))
    assert 0.0 < np.linalg.norm(moved[0] - moved[1]) < 0.05 * np.linalg.norm(moved[1])


def test_it_is_chosen_by_name_and_wrong_settings_are_refused():
    flags = ["--precision", "float16", "--loss-scaling", "dynamic", "--loss-scaling.every", "100"]
    found = parse(ONE, flags, "train.py")
    assert found == replace(ONE, precision="float16", loss_scaling=Dynamic(every=100))
    assert parse(found, ["--loss-scaling", "none", "--precision", "float32"], "train.py") == ONE
    for wrong in ({"initial": 1000.0}, {"initial": 0.5}, {"every": 0}, {"factor": 1.0}, {"largest": 2.0}):
        with pytest.raises(ValueError, match="must"):
            replace(Dynamic(), **wrong)
