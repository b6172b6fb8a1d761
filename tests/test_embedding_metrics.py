"""The metrics of a run's embeddings, on small embedders whose embeddings are known."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import metrics.embeddings
from data.arrays import ArraySource
from data.dataset import Dataset, MissingDataError, is_test
from data.prototypes import Prototypes, prototypes
from data.toys import TwoMoons
from data.verification_pairs import drawn_pairs
from experiments.digits_flow import tiny as digits_flow
from metrics.angles import Angles, class_angles
from metrics.embeddings import HeadAccuracy, KNNAccuracy, PairsFile, Verification, embedded
from metrics.metric import Evaluation
from metrics.verification import (
    auc,
    cosines,
    equal_error_rate,
    knn_accuracy,
    rank1,
    tar_at_far,
    verification_accuracy,
)
from models.embedder import Embedder, EmbeddingNet
from training.mesh import Mesh, placed


class Linear(EmbeddingNet):
    def __call__(self, x, train=False):
        return x.reshape(x.shape[0], -1) @ self.variables["params"]["w"]


@dataclass(frozen=True, kw_only=True)
class Labelled(Dataset):
    """Vectors about their class's own axis; an open set has classes of its own in the test split."""

    classes: int = 6
    open_set: bool = False
    spread: float = 0.05
    each: int = 8

    @property
    def shape(self):
        return (2 * self.classes,)

    @property
    def num_classes(self):
        return self.classes

    def source(self, split):
        test = is_test(split)
        r = np.random.RandomState(test)
        label = r.permutation(np.repeat(np.arange(self.classes), self.each))
        axis = label + self.classes * (test and self.open_set)
        x = np.eye(2 * self.classes)[axis] + self.spread * r.randn(len(label), 2 * self.classes)
        return ArraySource((3.0 * x).astype(np.float32), label, lambda x: x)


def evaluation(data, model=None, w=None, **variables):
    size = int(np.prod(data.shape))
    w = np.eye(size) if w is None else w
    model = model or Embedder(net=Linear(features=w.shape[1]), classes=data.num_classes)
    params = {"net": {"w": jnp.asarray(w, jnp.float32)}, **variables}
    return Evaluation(model, {"params": params, "state": {"net": {}}}, data, lambda n: np.zeros((n, size)))


CLOSED, OPEN = Labelled(), Labelled(open_set=True)
SMALL = Verification(folds=3, per_fold=40, far=0.1)


def test_embedded_are_the_directions_of_the_models_embeddings():
    r = np.random.RandomState(0)
    w, x = r.randn(12, 5), r.randn(1203, 12).astype(np.float32)
    x[7] = 0.0
    found = embedded(evaluation(CLOSED, w=w), x)
    h = x.astype(np.float64) @ w
    h[7, 0] = 1.0
    expected = h / np.linalg.norm(h, axis=1, keepdims=True)
    expected[7] = 0.0
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, 7, 0), axis=1), 1.0, rtol=1e-14)


def test_embeddings_that_are_no_numbers_or_of_another_model_are_refused():
    x = CLOSED.arrays("test", 20)["x"]
    x[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 20 embeddings hold numbers that are not finite"):
        embedded(evaluation(CLOSED), x)
    nan = evaluation(CLOSED, w=np.full((12, 4), np.nan), head=jnp.ones((6, 4)))
    for metric in (SMALL, KNNAccuracy(), HeadAccuracy(), Angles()):
        with pytest.raises(ValueError, match="48 of 48 embeddings"):
            metric(nan)
        with pytest.raises(ValueError, match="those of an Embedder; this run's model is Denoiser"):
            metric(replace(nan, model=digits_flow.model))


@pytest.mark.parametrize("data", [CLOSED, OPEN])
def test_well_separated_classes_are_verified_perfectly(data):
    SMALL.check(data)
    perfect = {"verification_accuracy": 1.0, "verification_accuracy_stderr": 0.0, "tar_at_far_0.1": 1.0}
    assert SMALL(evaluation(data)) == perfect | {"auc": 1.0, "eer": 0.0, "rank1": 1.0}


def test_embeddings_that_have_nothing_to_do_with_the_class_are_verified_by_chance():
    data = Labelled(classes=10, each=20, spread=1.0)
    noise = np.concatenate([np.zeros((10, 10)), np.eye(10)])  # the axes of no class
    found = Verification(folds=5, per_fold=400)(evaluation(data, w=noise))
    assert found["verification_accuracy"] == pytest.approx(0.5, abs=0.06)
    assert found["auc"] == pytest.approx(0.5, abs=0.06)
    assert found["eer"] == pytest.approx(0.5, abs=0.06)
    assert found["tar_at_far_0.01"] < 0.05
    assert found["rank1"] == pytest.approx(0.1, abs=0.08)


def test_a_runs_numbers_are_the_functions_of_its_embeddings():
    data = Labelled(spread=0.5)
    w = np.random.RandomState(1).randn(12, 4)
    run = evaluation(data, w=w)
    test, train = data.arrays("test", 48), data.arrays("train", 48)
    h, known = test["x"].astype(np.float64) @ w, train["x"].astype(np.float64) @ w
    pairs = drawn_pairs(test["label"], 3, 40, 5)
    scores = cosines(h[pairs.first], h[pairs.second])
    accuracy, error = verification_accuracy(scores, pairs.same, pairs.fold)
    assert replace(SMALL, seed=5)(run) == pytest.approx(
        {
            "verification_accuracy": accuracy,
            "verification_accuracy_stderr": error,
            "tar_at_far_0.1": tar_at_far(scores, pairs.same, 0.1),
            "auc": auc(scores, pairs.same),
            "eer": equal_error_rate(scores, pairs.same),
            "rank1": rank1(h, test["label"]),
        }
    )
    expected = knn_accuracy(known[:30], train["label"][:30], h, test["label"], 3)
    assert KNNAccuracy(k=3, train_examples=30)(run) == {"knn_accuracy": pytest.approx(expected)}
    assert Angles()(run) == pytest.approx(class_angles(h, test["label"]), rel=1e-5)
    of_train = {f"{name}_of_train": value for name, value in class_angles(known, train["label"]).items()}
    assert Angles(split="train")(run) == pytest.approx(of_train, rel=1e-5)


def test_no_metric_sees_a_rescaling_of_the_embeddings():
    data = Labelled(spread=0.5)
    w, head = np.random.RandomState(1).randn(12, 4), jnp.asarray(np.random.RandomState(2).randn(6, 4), jnp.float32)
    for metric in (SMALL, KNNAccuracy(), HeadAccuracy(), HeadAccuracy(angles=False), Angles(), Angles(split="train")):
        numbers = [metric(evaluation(data, w=scale * w, head=head)) for scale in (1.0, 2.0**-30, 2.0**30)]
        assert numbers[0] == numbers[1] == numbers[2]


@pytest.mark.parametrize("centres", [1, 3])
@pytest.mark.parametrize("class_axis", ["", "data"])
def test_head_accuracy_counts_by_cosine_or_by_product_in_whole_and_split_heads(centres, class_axis):
    """Rows of unequal lengths, so that the two differ; rows past the classes are larger than all, and do not count."""
    data = Labelled(spread=0.5, each=40)
    model = Embedder(net=Linear(features=12), classes=6, centres=centres, class_axis=class_axis)
    r = np.random.RandomState(0)
    w = np.eye(12)[:6][:, None] + 0.5 * r.randn(6, centres, 12)
    w *= np.exp(r.randn(6, centres, 1))
    padded = np.full((model.rows, centres, 12), 100.0)
    padded[:6] = w
    head = jnp.asarray(padded if centres > 1 else padded[:, 0], jnp.float32)
    run = evaluation(data, model, head=head)
    places = placed(run.variables, Mesh().build(), model.split)
    run = replace(run, variables=jax.device_put(run.variables, places))
    test = data.arrays("test", 240)
    x = test["x"].astype(np.float64)
    product = np.einsum("bd,ckd->bck", x, w)
    cosine = product / np.linalg.norm(w, axis=2)
    expected = [np.mean(found.max(2).argmax(1) == test["label"]) for found in (cosine, product)]
    assert expected[0] != expected[1]
    assert HeadAccuracy()(run) == {"head_accuracy": pytest.approx(expected[0])}
    assert HeadAccuracy(angles=False)(run) == {"head_accuracy_by_product": pytest.approx(expected[1])}


def test_head_accuracy_finds_a_head_that_is_kept_in_the_state():
    model = Embedder(net=Linear(features=12), classes=6, head_in_state=True)
    run = evaluation(CLOSED, model)
    head = jnp.asarray(np.eye(12)[:6], jnp.float32)
    run = replace(run, variables={**run.variables, "state": {"net": {}, "head": head}})
    assert HeadAccuracy()(run) == {"head_accuracy": 1.0}


def test_what_knows_classes_refuses_an_open_set_before_training_and_by_its_labels():
    head = jnp.ones((6, 12))
    for metric in (KNNAccuracy(), HeadAccuracy()):
        metric.check(CLOSED)
        with pytest.raises(ValueError, match="needs a test split of the training classes, and that of Labelled is an"):
            metric.check(OPEN)
        with pytest.raises(ValueError, match="that of Labelled is an open set"):
            metric(evaluation(OPEN, head=head))
        with pytest.raises(ValueError, match=r"labels 0 … 2; it has labels 0 … 5, so it is an open set"):
            metric(evaluation(Untold(), head=head))


class Untold(Labelled):
    """More classes in the test split than were trained on."""

    @property
    def num_classes(self):
        return 3


def test_settings_and_data_that_cannot_be_measured_are_refused_early():
    for metric in (Verification(), KNNAccuracy(), HeadAccuracy(), Angles()):
        with pytest.raises(ValueError, match="needs labels, and TwoMoons has none"):
            metric.check(TwoMoons())
    for data in (CLOSED, OPEN):
        with pytest.raises(ValueError, match="need 20 of them, and the test split of Labelled has 6; choose fewer"):
            Verification().check(data)
        Verification(folds=3).check(data)
    for wrong in ({"folds": 1}, {"per_fold": 1}, {"examples": 1}, {"seed": -1}, {"seed": 2**32}):
        with pytest.raises(ValueError, match="Verification: folds, per_fold and examples"):
            Verification(**wrong)
    with pytest.raises(ValueError, match=r"far=0.0001 needs at least 10000 pairs of two classes, and there are 3000"):
        Verification(far=1e-4)
    for wrong in ({"k": 0}, {"k": 9, "train_examples": 8}, {"examples": 0}):
        with pytest.raises(ValueError, match="KNNAccuracy: k must be"):
            KNNAccuracy(**wrong)
    with pytest.raises(ValueError, match="HeadAccuracy: examples=0"):
        HeadAccuracy(examples=0)
    with pytest.raises(ValueError, match="examples=1 must be at least 2"):
        Angles(examples=1)


@dataclass(frozen=True, kw_only=True)
class Grey(Labelled):
    @property
    def shape(self):
        return (4, 4, 1)


def faces(folder, folds=2):
    """Three people a fold, each of a grey level to the left and another to the right; and the list of their pairs."""
    lines = [f"{folds}\t2"]
    for fold in range(folds):
        names = [f"Fold{fold}_{person}" for person in "ABC"]
        for person, name in enumerate(names):
            (folder / name).mkdir(parents=True)
            for image in (1, 2):
                pixels = np.full((4, 4), 128, np.uint8)
                pixels.ravel()[4 * person : 4 * person + 4] = 250 - image - fold
                Image.fromarray(pixels).save(folder / name / f"{name}_{image:04d}.png")
        lines += [f"{name}\t1\t2" for name in names[:2]]
        lines += [f"{names[0]}\t1\t{names[1]}\t2", f"{names[1]}\t1\t{names[2]}\t1"]
    path = folder.parent / "some_faces.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_list_of_pairs_is_verified_under_its_own_name(tmp_path):
    path = faces(tmp_path / "images")
    metric = PairsFile(pairs=path, folder=str(tmp_path / "images"), far=0.25)
    metric.check(Grey())
    found = metric(evaluation(Grey()))
    names = ("verification_accuracy", "verification_accuracy_stderr", "tar_at_far_0.25", "auc", "eer")
    assert found == dict(zip([f"{name}_of_some_faces" for name in names], (1.0, 0.0, 1.0, 1.0, 0.0), strict=True))
    # Embeddings that see the row of no person: every pair looks alike, up to the grey levels' steps.
    blind = np.zeros((16, 2))
    blind[12:, 0] = 1.0
    assert metric(evaluation(Grey(), w=blind))["auc_of_some_faces"] == 0.5


def test_a_list_that_cannot_be_measured_is_refused_before_training(tmp_path):
    path, folder = faces(tmp_path / "images"), str(tmp_path / "images")
    with pytest.raises(ValueError, match="name the list"):
        PairsFile().check(Grey())
    with pytest.raises(MissingDataError, match="there is no list of pairs"):
        PairsFile(pairs=path + "x", folder=folder).check(Grey())
    with pytest.raises(ValueError, match=r"far=0.01 needs at least 100 pairs of two classes, and there are 4"):
        PairsFile(pairs=path, folder=folder).check(Grey())
    with pytest.raises(ValueError, match=r"not as \(12,\)"):
        PairsFile(pairs=path, folder=folder, far=0.5).check(CLOSED)
    one = faces(tmp_path / "one" / "images", folds=1)
    with pytest.raises(ValueError, match=r"some_faces.txt has one fold"):
        PairsFile(pairs=one, folder=str(tmp_path / "one" / "images"), far=0.5).check(Grey())


def test_a_trained_like_head_on_many_prototypes_is_measured_in_small_batches(monkeypatch):
    """Prototypes as the head's rows: nearly all examples are nearest to their own, however few are held at once."""
    data = Prototypes(classes=300, dimensions=32, noise=0.4)
    run = evaluation(data, head=jnp.asarray(prototypes(np.arange(300), 32)))
    whole = HeadAccuracy(examples=400)(run)
    monkeypatch.setattr(metrics.embeddings, "PRODUCTS", 300 * 64)
    assert HeadAccuracy(examples=400)(run) == whole
    assert whole["head_accuracy"] > 0.95


def test_a_net_of_flax_is_embedded_as_well():
    class Dense(EmbeddingNet):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(self.features)(x)

    model = Embedder(net=Dense(features=7), classes=6)
    batch = jax.tree.map(jnp.asarray, CLOSED.arrays("test", 48))
    variables = model.init(jax.random.key(0), batch)
    found = embedded(Evaluation(model, variables, CLOSED, lambda n: np.zeros((n, 12))), np.asarray(batch["x"]))
    h = np.asarray(model.embed(variables, batch["x"]), np.float64)
    np.testing.assert_allclose(found, h / np.linalg.norm(h, axis=1, keepdims=True), atol=1e-5)
