"""Training by comparison: the two signals and their states together, centres by hand, one device and eight."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from losses.fused_head import HeadSGD
from losses.identification import Identification
from losses.margin_softmax import CosFace, Softmax
from losses.metric import Contrastive, NPair, SupervisedContrastive, Triplet
from losses.metric_learning import CenterLoss, MetricLearning, moved_centres
from models.denoiser import Denoiser
from models.embedder import Embedder, EmbeddingNet
from models.mlp import MLP
from paths.schedules import VP
from tests.conftest import tiers
from training.mesh import Mesh


class Net(EmbeddingNet):
    """A layer and batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(self.features, name="layer")(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(h)


class Counting(Embedder):
    calls = 0

    def train_embed(self, variables, x, key):
        Counting.calls += 1
        return super().train_embed(variables, x, key)


CLASSES = 6
STEP = jnp.zeros((), jnp.int32)
KEY = jax.random.key(2)
X = np.random.default_rng(11).standard_normal((16, 5)).astype(np.float32)
BATCH = {"x": jnp.asarray(X), "label": jnp.arange(16, dtype=jnp.int32) // 3}
IDENTIFICATION = Identification(margin=CosFace(scale=8.0))


def embedder(cls=Embedder, **settings):
    return cls(net=Net(features=4), classes=CLASSES, **settings)


@cache
def started(model):
    """Variables with a head, centres and statistics that are not at their start."""
    return jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(model.init)(jax.random.key(1), BATCH))


def ran(loss, model, variables):
    return jax.jit(lambda variables: loss(model, variables, KEY, BATCH, STEP))(variables)


def embedded(model, variables):
    return jax.jit(lambda variables: model.train_embed(variables, BATCH["x"], KEY))(variables)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_metric_learning_adds_the_two_signals_of_one_embedding():
    model, metric = embedder(Counting), SupervisedContrastive()
    variables = started(model)
    alone = ran(IDENTIFICATION, model, variables)
    h, state = embedded(model, variables)
    Counting.calls = 0
    found = ran(MetricLearning(metric=metric, weight=0.25, identification=IDENTIFICATION), model, variables)
    assert Counting.calls == 1
    compared = jax.jit(metric.compare)(h, BATCH["label"])
    assert_close(found.value, alone.value + 0.25 * compared.value)
    own = {"metric_loss": compared.value, "active": compared.active, "identification_loss": alone.value}
    assert_close(dict(found.metrics), dict(alone.metrics) | own)
    assert_close(found.state, state)


def test_metric_learning_alone_is_the_metric_loss_with_the_networks_new_state():
    model = embedder()
    variables = started(model)
    found = ran(MetricLearning(metric=NPair()), model, variables)
    h, state = embedded(model, variables)
    assert_close(found.value, jax.jit(NPair())(h, BATCH["label"]))
    assert set(found.metrics) == {"metric_loss", "active"}
    assert_close(found.state, state)
    before, after = (jax.tree.leaves(s["net"]) for s in (variables["state"], found.state))
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("center", [False, True])
def test_the_heads_own_step_and_the_statistics_are_both_in_the_new_state(center):
    model = embedder(head_in_state=True, class_means=True)
    variables = started(model)
    identification = Identification(margin=CosFace(scale=8.0), update=HeadSGD(learning_rate=0.1))
    alone = ran(identification, model, variables)
    found = ran((CenterLoss if center else MetricLearning)(identification=identification), model, variables)
    assert set(found.state) == set(variables["state"])
    for name in ("net", "head", "momentum"):
        assert_close(found.state[name], alone.state[name])
        for a, b in zip(jax.tree.leaves(found.state[name]), jax.tree.leaves(variables["state"][name]), strict=True):
            assert not np.allclose(a, b, rtol=1e-3), name
    moved = (np.asarray(found.state["class_means"]) != np.asarray(variables["state"]["class_means"])).any(axis=1)
    np.testing.assert_array_equal(moved, center)  # all six classes are in the batch


def test_centres_move_as_computed_by_hand():
    centres = jnp.asarray([[1.0, 1.0], [0.0, 0.0], [4.0, -2.0]])
    h = jnp.asarray([[3.0, 1.0], [4.0, 0.0], [2.0, 3.0]])
    moved = moved_centres(centres, h, jnp.asarray([0, 2, 0]), 0.5)
    # class 0: ((1 − 3) + (1 − 2), (1 − 1) + (1 − 3))/(1 + 2) = (−1, −2/3); class 2: (0, −2)/(1 + 1) = (0, −1)
    np.testing.assert_allclose(moved, [[1.5, 1.0 + 1 / 3], [0.0, 0.0], [4.0, -1.5]], rtol=1e-6)


def test_centres_come_to_rest_at_their_classes_means():
    label = jnp.asarray([0, 0, 0, 1, 1])
    h = jnp.asarray(X[:5, :3])
    centres = jax.lax.fori_loop(0, 60, lambda _, c: moved_centres(c, h, label, 0.5), jnp.zeros((3, 3)))
    np.testing.assert_allclose(centres, [h[:3].mean(0), h[3:].mean(0), [0.0, 0.0, 0.0]], atol=1e-5)


def test_center_loss_pulls_embeddings_to_their_centres_and_lets_no_gradient_into_them():
    model = embedder(class_means=True)
    means = jnp.asarray(X[:CLASSES, :4])
    variables = {**started(model), "state": {**started(model)["state"], "class_means": means}}
    h, label = embedded(model, variables)[0], BATCH["label"]
    pull = h - means[label]

    def with_slopes(loss):
        def mean_and_found(variables):
            found = loss(model, variables, KEY, BATCH, STEP)
            return jnp.mean(found.value), found

        (_, found), slopes = jax.jit(jax.value_and_grad(mean_and_found, has_aux=True))(variables)
        return found, slopes

    alone, slopes_alone = with_slopes(IDENTIFICATION)
    found, slopes = with_slopes(CenterLoss(identification=IDENTIFICATION, weight=0.2, rate=0.3))
    assert_close(found.value, alone.value + 0.1 * jnp.sum(pull**2, axis=1))
    assert_close(found.metrics["center_loss"], 0.5 * jnp.sum(pull**2, axis=1))
    assert_close(found.metrics["identification_loss"], alone.value)
    assert_close(found.state["class_means"], moved_centres(means, h, label, 0.3))
    np.testing.assert_array_equal(slopes["state"]["class_means"], 0.0)
    # The gradient in the norm's bias is the sum of those in h, so the centres' part of it is λ·mean(h − c).
    part = slopes["params"]["net"]["norm"]["bias"] - slopes_alone["params"]["net"]["norm"]["bias"]
    np.testing.assert_allclose(part, 0.2 * jnp.mean(pull, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "loss", [MetricLearning(identification=IDENTIFICATION), CenterLoss(identification=IDENTIFICATION)]
)
def test_wrong_models_and_data_are_refused(loss):
    model = embedder()
    variables = started(model)
    with pytest.raises(TypeError, match="trains an Embedder, got Denoiser"):
        loss(Denoiser(net=MLP(), path=VP()), variables, KEY, BATCH, STEP)
    with pytest.raises(ValueError, match="trained on labels, and this data has none"):
        loss(model, variables, KEY, {"x": BATCH["x"]}, STEP)
    if isinstance(loss, CenterLoss):
        with pytest.raises(ValueError, match="set class_means=True"):
            ran(loss, model, variables)


def test_settings_out_of_range_are_refused():
    for cls in (MetricLearning, CenterLoss):
        with pytest.raises(ValueError, match=r"weight=-1\.0 must be at least 0"):
            cls(weight=-1.0)
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"rate={rate} in \(0, 1\]"):
            CenterLoss(rate=rate)


SPREAD = {
    "all": MetricLearning(metric=Triplet(mining="all"), identification=IDENTIFICATION),
    "semi_hard": MetricLearning(metric=Triplet(mining="semi_hard")),
    "n_pair": MetricLearning(metric=NPair()),
    "supervised": MetricLearning(metric=SupervisedContrastive(), identification=Identification(margin=Softmax())),
    "contrastive": MetricLearning(metric=Contrastive()),
    "center": CenterLoss(identification=IDENTIFICATION),
}


@pytest.mark.parametrize("name", tiers(list(SPREAD), first=("center",)))
def test_one_device_equals_eight(name):
    model, loss = embedder(class_means=True), SPREAD[name]
    variables, mesh = started(model), Mesh().build()
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))

    def step(variables, batch):
        def objective(params):
            found = loss(model, {**variables, "params": params}, KEY, batch, STEP)
            return jnp.mean(found.value), found

        (_, found), slope = jax.value_and_grad(objective, has_aux=True)(variables["params"])
        return found.value, dict(found.metrics), found.state, slope

    one = jax.jit(step)(variables, BATCH)
    eight = jax.jit(step, in_shardings=(whole, split), out_shardings=(split, None, whole, whole))(variables, BATCH)
    assert len(eight[0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, eight)
