"""Runs of one class, and a million made-up classes."""

from collections import Counter
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pytest
from chex import assert_trees_all_equal as same_batches
from scipy import stats

from data.arrays import ArraySource, flipped
from data.dataset import Batches
from data.digits import Digits
from data.grouped import Grouped
from data.image_tokens import ImageTokens
from data.omniglot import OmniglotOpenSet
from data.prototypes import Prototypes, prototypes, splitmix64
from tests.test_recognition_data import is_pure


@pytest.mark.parametrize("each", [2, 4, 5])
def test_batches_are_runs_of_one_class_and_pure_functions_of_their_place(each):
    data, plain = Grouped(data=Digits(), each=each), Digits().arrays("train", 2000)
    known = {x.tobytes(): int(c) for x, c in zip(plain["x"], plain["label"], strict=True)}
    batches = Batches(data.source("train"), 10 * each, seed=3)
    for i in (0, 1, 57, 200):
        batch = batches[i]
        runs = batch["label"].reshape(10, each)
        assert (runs == runs[:, :1]).all()
        assert sorted(runs[:, 0]) == list(range(10))  # an epoch of groups is every class once
        for run in batch["x"].reshape(10, each, -1):
            assert len(np.unique(run, axis=0)) == each
        assert [known[x.tobytes()] for x in batch["x"]] == batch["label"].tolist()
    assert not np.array_equal(batches[0]["label"], batches[1]["label"])
    is_pure(data.source("train"), np.arange(1230, 1330))
    parts = [Batches(batches.source, 80, seed=3, rows=np.arange(10 * p, 10 * p + 10))[57]["x"] for p in range(8)]
    np.testing.assert_array_equal(np.concatenate(parts), Batches(batches.source, 80, seed=3)[57]["x"])


@dataclass(frozen=True, kw_only=True)
class Few(Digits):
    """Record i is the row (i, −1), or mirrored."""

    labels: tuple[int, ...]

    def source(self, split):
        x = np.arange(len(self.labels), dtype=np.float32)[:, None, None, None]
        x = np.concatenate([x, -np.ones_like(x)], axis=2)
        return ArraySource(x, np.asarray(self.labels), lambda x: x, mirror=True)


def test_members_are_every_image_as_often_and_in_every_place():
    source = Grouped(data=Few(labels=(1, 0, 1, 0, 0, 1)), each=2).source("train")
    numbers = np.arange(24_000)
    x = source.read(numbers, 0, numbers)["x"].max(axis=(1, 2, 3)).astype(int)
    ordered = Counter(zip(x[::2].tolist(), x[1::2].tolist(), strict=True))
    assert len(ordered) == 2 * 3 * 2  # every ordered pair of each class
    assert max(abs(count / 1000 - 1) for count in ordered.values()) < 0.15


def test_a_small_class_is_gone_through_again_and_a_missing_one_is_left_out():
    source = Grouped(data=Few(labels=(0, 4, 4, 4, 9, 9, 9)), each=5).source("train")  # of ten classes three are here
    numbers = np.arange(100, 190)
    batch = source.read(np.zeros(90, int), 2, numbers)
    np.testing.assert_array_equal(batch["x"][:, 0, 0, 0] < 0, flipped(2, numbers))  # as without groups
    labels, runs = batch["label"].reshape(18, 5), batch["x"].max(axis=(1, 2, 3)).reshape(18, 5)  # of groups 20 … 37
    assert (labels == labels[:, :1]).all()
    assert (np.sort(labels[1:16, 0].reshape(5, 3), axis=1) == [0, 4, 9]).all()  # from 21 on, whole epochs of three
    for label, run in zip(labels[:, 0], runs, strict=True):
        assert sorted(Counter(run.tolist()).values()) == ([5] if label == 0 else [1, 2, 2])
        np.testing.assert_array_equal(run[3:], run[:2])


def test_all_but_the_order_of_training_is_that_of_the_set_itself():
    of = attrgetter("shape", "num_classes", "bin_width", "vocabulary", "grid", "prompt_length", "stop", "runs")
    for inner in (Digits(), ImageTokens()):
        data, records, numbers = Grouped(data=inner), np.arange(9), np.arange(40, 49)
        assert (*of(data), data.made_by, data.pictured) == (*of(inner), inner.made_by, inner.pictured)
        for split in ("train", "test"):
            same_batches(data.arrays(split, 30), inner.arrays(split, 30))
            assert len(data.source(split)) == len(inner.source(split))
        same_batches(data.zeros(3), inner.zeros(3))
        same_batches(data.source("test").read(records, 3, numbers), inner.source("test").read(records, 3, numbers))
        x = inner.arrays("test", 3)["x"]
        np.testing.assert_array_equal(data.shown(x), inner.shown(x))
        assert data.pinned() == data
    assert [Grouped(data=inner).open_set for inner in (Digits(), OmniglotOpenSet())] == [False, True]


def test_a_prototype_is_a_uniform_direction_and_a_function_of_its_class():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # the first outputs of seed 0
    assert splitmix64(np.arange(3, dtype=np.uint64)).tolist() == published
    label = np.asarray([0, 7, 999_999, 2**31 - 1, 7])
    p, odd = prototypes(label, 64), prototypes(label, 63)
    np.testing.assert_array_equal(p[1], p[4])
    np.testing.assert_array_equal(p[2:3], prototypes(label[2:3], 64))
    np.testing.assert_allclose(np.linalg.norm(p, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(odd, p[:, :63] / np.linalg.norm(p[:, :63], axis=1, keepdims=True), rtol=1e-5)
    p = prototypes(np.arange(4000), 32).astype(np.float64)  # of which the directions are uniform
    for cosine in (p.ravel(), (p[:2000] * p[2000:]).sum(axis=1)):  # with an axis, with one another
        assert stats.kstest((cosine + 1) / 2, stats.beta(15.5, 15.5).cdf).pvalue > 1e-3
    assert abs(32 * p.T @ p / len(p) - np.eye(32)).max() < 5 / 4000**0.5


def test_examples_of_prototypes_are_as_stated():
    data, numbers = Prototypes(classes=1000, dimensions=256, noise=0.5), np.arange(4000)
    train, other = is_pure(data.source("train"), numbers), data.source("test")
    test = other.read(numbers, 5, numbers)
    same_batches(other.read(numbers, 6, numbers), test)  # one for all seeds
    assert not np.array_equal(test["label"], train["label"])
    for batch in (train, test):
        assert (batch["x"].dtype, batch["label"].dtype) == (np.float32, np.int32)
        assert (*batch["x"].shape[1:], 1000) == (*data.shape, data.num_classes) == (256, 1000)
        counts = np.bincount(batch["label"], minlength=1000)
        assert ((counts - 4.0) ** 2 / 4.0).sum() == pytest.approx(999, abs=5 * (2 * 999) ** 0.5)
        assert batch["x"].std() == pytest.approx(1.0, abs=0.01)
        noise = batch["x"] * 1.25**0.5 - 16.0 * prototypes(batch["label"], 256)
        assert stats.kstest(noise[:, :50].ravel() / 0.5, "norm").pvalue > 1e-3
    clean = Prototypes(dimensions=5, noise=0.0)
    batch = clean.source("train").read(numbers, 0, numbers)
    np.testing.assert_allclose(batch["x"], 5**0.5 * prototypes(batch["label"], 5), rtol=1e-5)
    assert batch["label"].max() > 990_000
