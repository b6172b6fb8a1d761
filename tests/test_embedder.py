"""Embedders in the training loop: heads whole and split, moved by the optimiser and by themselves; what is refused."""

import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data.digits import Digits
from data.grouped import Grouped
from losses.fused_head import HeadSGD
from losses.identification import Identification
from losses.margin_softmax import AdaFace, ArcFace, SphereFace2
from losses.metric_learning import CenterLoss, MetricLearning
from metrics.embeddings import HeadAccuracy
from models.embedder import PAD, Embedder, unit
from models.embedding_mlp import EmbeddingMLP
from tests.conftest import needs, tiers
from training.cli import experiment_names, load_experiment
from training.errors import Stopped, UserError
from training.experiment import Checkpoints, Experiment
from training.loop import train
from training.mesh import Mesh
from training.optimizer import Optimizer
from training.plan import Plan

ARCFACE = ArcFace(scale=8.0, m=0.2)
NET = EmbeddingMLP(width=16, depth=1, features=8)


def experiment(devices=1, steps=3, update=None, sample=1.0, margin=ARCFACE, **model):
    return Experiment(
        data=Digits(),
        model=Embedder(net=NET, head_in_state=update is not None, **model),
        loss=Identification(margin=margin, update=update, sample=sample),
        optimizer=Optimizer(learning_rate=1e-2),
        steps=steps,
        batch_size=16,
        mesh=Mesh(data=devices),
        checkpoints=Checkpoints(every=steps),
        log_every=1,
    )


def state_after(experiment, steps=3):
    """The state and the losses of a run's first steps."""
    plan, losses = Plan(experiment), []
    state = plan.initial()
    for step in range(steps):
        state, metrics = plan.train_step(state, plan.batches[step])
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("update", "axis"),
    itertools.product((None, HeadSGD(learning_rate=0.5)), ("", "data")),
)
def test_eight_devices_are_one(update, axis):
    """With the head on each of them, and with its rows split."""
    one, expected = state_after(experiment(1, update=update, class_axis=axis))
    eight, found = state_after(experiment(8, update=update, class_axis=axis))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), _head(eight, update), _head(one, update)
    )


def _head(state, update):
    return state.params["head"] if update is None else {name: state.model[name] for name in ("head", "momentum")}


@pytest.mark.parametrize("update", tiers([None, HeadSGD()], first=(HeadSGD(),)))
def test_a_split_head_is_split_with_all_that_is_kept_of_it(update):
    state, _ = state_after(experiment(8, 1, update=update, class_axis="data"), 1)
    kept = jax.tree_util.tree_leaves_with_path(state)
    heads = [leaf for path, leaf in kept if getattr(path[-1], "key", "") in ("head", "momentum")]
    assert len(heads) == (4 if update is None else 2)  # W, its average and Adam's two; W and its momentum
    for leaf in heads:
        assert leaf.shape == (PAD, 8)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(PAD // 8, 8)}
    whole = [leaf for path, leaf in kept if getattr(path[-1], "key", "") == "kernel"]
    assert all(leaf.sharding.is_fully_replicated for leaf in whole)


@pytest.mark.parametrize("axis", tiers(["", "data"], first=("",)))
@pytest.mark.thorough
def test_the_head_in_the_state_takes_the_steps_that_the_loss_would_take_of_its_gradient(axis):
    """Plain SGD of the head, by the optimiser and by itself."""
    how = {"class_axis": axis, "devices": 8 if axis else 1}
    sgd = Optimizer(method="sgd", learning_rate=0.5, clip=0.0)
    by_optimizer = replace(experiment(**how), optimizer=sgd)
    by_itself = replace(experiment(update=HeadSGD(learning_rate=0.5), **how), optimizer=sgd)
    expected, losses = state_after(by_optimizer)
    found, own = state_after(by_itself)
    np.testing.assert_allclose(own, losses, rtol=1e-5)
    np.testing.assert_allclose(found.model["head"], expected.params["head"], rtol=1e-4, atol=2e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found.params["net"], expected.params["net"]
    )


@pytest.mark.thorough
def test_a_run_of_eight_devices_goes_on_with_two(tmp_path):
    """A split head is one array: where its rows lie is no part of the checkpoint."""
    folder, update = tmp_path / "run", HeadSGD(learning_rate=0.5)
    whole = train(experiment(8, 4, update=update, class_axis="data"), tmp_path / "unbroken")
    train(experiment(8, 2, update=update, class_axis="data"), folder)
    text = (folder / "config.json").read_text()
    more = text.replace('"steps": 2,', '"steps": 4,').replace('"every": 2,', '"every": 4,')
    assert more.count('"data": 8') == 1
    (folder / "config.json").write_text(more.replace('"data": 8', '"data": 2'))
    resumed = train(experiment(2, 4, update=update, class_axis="data"), folder)
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_it_learns_and_is_measured(tmp_path):
    long = replace(experiment(steps=150), metrics=(HeadAccuracy(),), batch_size=64, log_every=150, ema=0.9)
    assert train(long, tmp_path)["head_accuracy"] > 0.85


@pytest.mark.thorough
def test_a_learned_bias_moves():
    state, losses = state_after(experiment(margin=SphereFace2(scale=8.0), logit_bias=True))
    assert abs(float(state.params["logit_bias"])) > 1e-3
    assert math.isfinite(losses[-1])
    fused, own = state_after(experiment(margin=SphereFace2(scale=8.0), logit_bias=True, update=HeadSGD()), 1)
    np.testing.assert_allclose(own[0], losses[0], rtol=1e-5)
    assert abs(float(fused.params["logit_bias"])) > 1e-3


def test_directions_are_unit_vectors_and_that_of_nothing_is_nothing():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(unit(x)))(x)[1], 0.0)
    assert unit(x.astype(jnp.bfloat16)).dtype == jnp.float32


# What is refused


@dataclass(frozen=True, kw_only=True)
class TwelveDigits(Digits):
    """Says that it has twelve classes, and has ten."""

    @property
    def num_classes(self):
        return 12


@dataclass(frozen=True, kw_only=True)
class NineDigits(Digits):
    """Says that it has nine classes, and has ten."""

    @property
    def num_classes(self):
        return 9


@dataclass(frozen=True, kw_only=True)
class OneDigit(Digits):
    """Says that it has one class."""

    @property
    def num_classes(self):
        return 1


def test_a_label_that_the_head_has_no_row_for_stops_the_run_before_its_step(tmp_path):
    with pytest.raises(UserError, match="step 1: label 9 is not among the 9 classes 0 … 8 of the head"):
        train(replace(experiment(), data=NineDigits(), batch_size=128), tmp_path)


@pytest.mark.thorough
def test_one_that_comes_later_stops_the_run_with_what_is_saved(tmp_path):
    run = replace(experiment(steps=50), data=NineDigits(), batch_size=4, checkpoints=Checkpoints(every=1), seed=1)
    message = r"step \d+: label 9 is not among the 9 classes .* stopped, the last good checkpoint is step \d+"
    with pytest.raises(Stopped, match=message):
        train(run, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, data=OneDigit()), "classes=1: a softmax needs two classes or more"),
        (lambda e: replace(e, model=replace(e.model, logit_bias=True)), "SphereFace2 alone has it"),
        (lambda e: replace(e, data=TwelveDigits()), "class 10 of 0 … 11 has no training example, nor have 1 more"),
        (
            lambda e: replace(e, loss=MetricLearning(), accumulate=2),
            "accumulate=2: examples are compared within a batch",
        ),
        (
            lambda e: replace(experiment(update=HeadSGD()), accumulate=2),
            "accumulate=2: a head that the loss updates would take a step a part",
        ),
        (lambda e: replace(e, loss=CenterLoss(), accumulate=2), "accumulate=2: centres move once a batch"),
        (
            lambda e: replace(e, loss=Identification(margin=AdaFace()), accumulate=2),
            "accumulate=2: AdaFace compares the norms of a batch",
        ),
        (lambda e: replace(e, data=Grouped(each=5)), "batch_size=16 must be a multiple of each=5"),
        (lambda e: replace(e, model=replace(e.model, classes=7)), "head has 7 classes, but the data has 10"),
        (lambda e: replace(e, model=replace(e.model, class_axis="rows")), "the mesh has no axis 'rows'; it has data"),
        (lambda e: replace(e, loss=Identification(update=HeadSGD())), "exactly if it is no parameter"),
        (lambda e: replace(e, model=replace(e.model, head_in_state=True)), "exactly if it is no parameter"),
        (lambda e: replace(e, data=load_experiment("toy_flow").data), "no classes, but the data has none"),
        (
            lambda e: replace(e, model=load_experiment("toy_flow").model),
            "this loss trains an Embedder, got Denoiser",
        ),
    ],
)
def test_what_cannot_be_trained_says_so_before_the_first_step(change, message):
    with pytest.raises((UserError, ValueError), match=message):
        Plan(change(experiment()))


# The experiments


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """Five people with six pictures each, in the folder that the experiments name."""
    rng = np.random.RandomState(0)
    for person in range(5):
        (tmp_path / "faces" / f"person_{person}").mkdir(parents=True)
        for i in range(6):
            pixels = rng.randint(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / f"person_{person}" / f"{i}.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.thorough
def test_a_folder_of_faces_is_trained_on(faces, tmp_path):
    tiny = load_experiment("deepid_faces", tiny=True)
    assert math.isfinite(train(replace(tiny, steps=2, mesh=Mesh(data=2)), tmp_path / "run")["loss"])
    Plan(load_experiment("arcface_faces", tiny=True))  # traced; its network is trained in tests/test_embedding_nets.py
    with pytest.raises(
        UserError, match=r"10 folds of different classes need 20 of them, and the test split of ImageFolder"
    ):
        Plan(replace(load_experiment("arcface_faces"), batch_size=8))
    Plan(replace(load_experiment("arcface_faces"), batch_size=8, metrics=()))


@pytest.mark.thorough
@pytest.mark.parametrize("axis", tiers(["", "data"], first=("data",)))
def test_a_part_of_very_many_classes_is_trained_on(axis, tmp_path):
    tiny = load_experiment("partial_fc_synthetic", tiny=True)
    model = replace(tiny.model, class_axis=axis)
    summary = train(replace(tiny, steps=3, model=model, mesh=Mesh(data=4)), tmp_path / "run")
    assert math.isfinite(summary["loss"])


OMNIGLOT = sorted(name for name in experiment_names() if name.startswith("margin_omniglot_"))
MNIST = [*sorted(name for name in experiment_names() if name.startswith("margin_mnist2d_")), "mnist_embedder"]
STEPPED = [f"margin_omniglot_{loss}" for loss in ("softmax", "subcentre", "sphereface2", "center", "triplet")]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs("omniglot")) for name in OMNIGLOT]
    + [pytest.param(name, marks=needs("mnist")) for name in MNIST],
)
def test_every_margin_experiment_can_take_its_steps(name):
    """Both its forms are traced; those of which no other is like take two steps."""
    Plan(load_experiment(name))
    tiny = replace(load_experiment(name, tiny=True), mesh=Mesh(data=1))
    Plan(tiny)
    if name in STEPPED:
        _, losses = state_after(tiny, 2)
        assert all(math.isfinite(loss) for loss in losses)
