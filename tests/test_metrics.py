"""Metrics against closed forms and independent float64 references."""

import numpy as np
import pytest
import scipy.linalg

from data.digits import Digits
from data.toys import TwoMoons
from experiments.digits_ddpm import tiny as digits_ddpm
from experiments.digits_flow import tiny as digits_flow
from metrics.class_accuracy import ClassAccuracy
from metrics.frechet import frechet_distance
from metrics.metric import Evaluation
from metrics.neighbours import nearest_distances, two_sample_accuracy

R = np.random.RandomState(0)


def test_frechet_equals_the_float64_reference():
    """scipy's matrix square root of Σ₁Σ₂, to 1e-6 relative."""
    for d in (1, 3, 20):
        x, y = R.randn(200, d) @ R.randn(d, d), R.randn(300, d) @ R.randn(d, d) + R.randn(d)
        s1, s2 = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
        reference = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
        assert frechet_distance(x, y) == pytest.approx(reference, rel=1e-6)
        assert frechet_distance(y, x) == pytest.approx(reference, rel=1e-6)


def test_frechet_of_equal_sets_is_zero_even_with_dead_pixels():
    x = R.randn(100, 4, 4, 1)
    x[:, 0, 0] = -1.0
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(x, x + 0.5) == pytest.approx(16 * 0.25)


def test_frechet_takes_features_and_refuses_too_few_examples():
    x, y = R.randn(50, 8, 8, 1), R.randn(60, 8, 8, 1)
    with pytest.raises(ValueError, match="64 features needs at least 65 examples a side; the first has 50"):
        frechet_distance(x, y)
    assert frechet_distance(x, y, features=lambda side: side.reshape(len(side), -1)[:, :3]) >= 0


def test_two_sample_accuracy_of_one_distribution_is_a_half_and_of_two_is_one():
    x, y = R.randn(1000, 5), R.randn(700, 5)
    assert two_sample_accuracy(x, y) == pytest.approx(0.5, abs=0.04)
    assert two_sample_accuracy(x, y + 20) == 1.0
    assert two_sample_accuracy(x, x) == pytest.approx(0.0, abs=0.01)  # copies: every neighbour is the other's
    with pytest.raises(ValueError, match="at least 2 examples"):
        two_sample_accuracy(x, y[:1])


def naive_count(x, y):
    """How many examples have their nearest neighbour on their own side."""
    both = np.concatenate([x, y])
    right = 0
    for i in range(len(both)):
        distance = np.linalg.norm(both - both[i], axis=1)
        distance[i] = np.inf
        right += (distance.argmin() < len(x)) == (i < len(x))
    return right


def test_two_sample_accuracy_equals_the_naive_count():
    x, y = R.randn(40, 3), R.randn(40, 3) + 0.7
    assert two_sample_accuracy(x, y) == pytest.approx(naive_count(x, y) / 80)


def test_samples_that_are_no_numbers_are_told_apart_and_spoil_no_other():
    x, y = R.randn(40, 3), R.randn(40, 3) + 0.7
    x[:2], x[2, 1] = np.nan, np.inf
    assert two_sample_accuracy(x, y) == pytest.approx((naive_count(x[3:], y) + 3) / 80)


def test_nearest_distances():
    x, reference = R.randn(25, 3, 2), R.randn(2500, 3, 2)
    naive = [np.sqrt(((reference - one) ** 2).sum((1, 2))).min() for one in x]
    np.testing.assert_allclose(nearest_distances(x, reference, chunk=10), naive, atol=1e-7)
    np.testing.assert_allclose(nearest_distances(reference[:5], reference), 0.0, atol=1e-6)


def test_class_accuracy_counts_the_samples_that_are_read_as_their_class():
    data = Digits()
    real = data.arrays("train", 1000)
    asked = np.arange(200) % 10
    of_class = np.stack([real["x"][real["label"] == label][i // 10] for i, label in enumerate(asked)])

    def measured(x, model=digits_flow.model):
        draw = lambda n: x[:n]  # noqa: E731
        return ClassAccuracy(samples=200)(Evaluation(model, {}, data, draw))

    found = measured(of_class)
    assert found["class_accuracy"] >= 0.99
    assert found["class_accuracy_of_test"] >= 0.97
    # One class on: all wrong but the last hundred, which are right again.
    shifted = np.concatenate([np.roll(of_class[:100], 1, axis=0), of_class[100:]])
    assert measured(shifted)["class_accuracy"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="needs a class-conditional model"):
        measured(of_class, digits_ddpm.model)
    with pytest.raises(ValueError, match="TwoMoons has none"):
        ClassAccuracy().check(TwoMoons())
