"""What embeddings are measured by, against hand examples and brute force in loops."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats

import metrics.verification
from data.verification_pairs import drawn_pairs
from metrics.angles import class_angles
from metrics.verification import (
    auc,
    cosines,
    equal_error_rate,
    knn_accuracy,
    rank1,
    roc,
    tar_at_far,
    verification_accuracy,
)

SEEDS = range(8)


def pairs_of(seed, n=60, folds=3):
    """Scores with many ties, of pairs of one class a little higher."""
    r = np.random.RandomState(seed)
    same = np.arange(n) % 2 == 0
    return np.round(r.randn(n) + same, 1), same, r.permutation(n) % folds


def clusters(seed, classes=6, each=5, d=4, spread=0.8):
    r = np.random.RandomState(seed)
    labels = r.permutation(np.repeat(np.arange(classes), each))
    return r.randn(classes, d)[labels] + spread * r.randn(len(labels), d), labels


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# Verification accuracy


def test_verification_accuracy_of_a_hand_example():
    """Thresholds 0.5, 0.5 and 0.5, which the third fold's last pair does not pass."""
    scores = np.asarray([0.8, 0.2, 0.8, 0.2, 0.9, 0.4])
    same = np.asarray([True, False, True, False, True, True])
    accuracy, error = verification_accuracy(scores, same, np.asarray([0, 0, 1, 1, 2, 2]))
    assert accuracy == pytest.approx((1 + 1 + 0.5) / 3)
    assert error == pytest.approx(np.sqrt(2 * (1 / 6) ** 2 + (1 / 3) ** 2) / np.sqrt(2) / np.sqrt(3))


def test_a_folds_threshold_is_chosen_without_seeing_it():
    """Each fold is told apart by its own threshold, 0.7 and 0.25, and is half wrong by the other's."""
    scores, same = np.asarray([0.9, 0.5, 0.4, 0.1]), np.asarray([True, False, True, False])
    assert verification_accuracy(scores, same, np.asarray([0, 0, 1, 1])) == (0.5, 0.0)
    assert verification_accuracy(scores, same, np.asarray([0, 1, 1, 0]))[0] < best_of_all(scores, same) == 0.75


def best_of_all(scores, same):
    return max(np.mean((scores >= t) == same) for t in [*scores, np.inf])


def brute_force_accuracy(scores, same, fold):
    found = []
    for one in sorted(set(fold.tolist())):
        other = [(s, y) for s, y, f in zip(scores, same, fold, strict=True) if f != one]
        levels = sorted({s for s, _ in other})
        candidates = [-np.inf, *((a + b) / 2 for a, b in pairwise(levels)), np.inf]
        right = [sum((s >= t) == y for s, y in other) for t in candidates]
        best = [t for t, count in zip(candidates, right, strict=True) if count == max(right)]
        threshold = best[(len(best) - 1) // 2]
        own = [(s >= threshold) == y for s, y, f in zip(scores, same, fold, strict=True) if f == one]
        found.append(sum(own) / len(own))
    return np.mean(found), scipy.stats.sem(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_verification_accuracy_equals_the_brute_force_over_all_thresholds(seed):
    given = pairs_of(seed)
    assert verification_accuracy(*given) == pytest.approx(brute_force_accuracy(*given))


def test_of_equally_good_thresholds_it_is_the_middle_one_in_the_middle_of_two_scores():
    """Best on the other fold are 1.5 and 3.5 (three of four right), so 1.5; and 0.5, 2.5 and 4.5 of six."""
    two = (np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([False, True, False, True]))
    six = (np.arange(6.0), np.asarray([False, True, False, True, False, True]))
    for (scores, same), threshold in ((two, 1.5), (six, 2.5)):
        for probe, accepted in ((threshold - 1e-9, False), (threshold + 1e-9, True)):
            found, error = verification_accuracy(
                np.append(scores, probe), np.append(same, True), np.append(np.zeros(len(scores), int), 1)
            )
            # The first fold's threshold is that of one pair of one class, which accepts all: half of it is right.
            assert found == pytest.approx((0.5 + accepted) / 2)
            assert error == pytest.approx(abs(accepted - 0.5) / 2)


def test_scores_with_no_number_between_them_are_told_apart_all_the_same():
    low = 0.1
    scores = np.tile([low, np.nextafter(low, 1.0)], 2)
    same = np.tile([False, True], 2)
    assert verification_accuracy(scores, same, np.asarray([0, 0, 1, 1])) == (1.0, 0.0)


def test_verification_refuses_what_it_cannot_measure():
    scores, same, fold = pairs_of(0)
    with pytest.raises(ValueError, match="two folds are needed, got 1"):
        verification_accuracy(scores, same, np.zeros_like(fold))
    for function in (roc, auc, equal_error_rate):
        with pytest.raises(ValueError, match="pairs of one class and pairs of two; 60 of 60"):
            function(scores, np.ones_like(same))
        with pytest.raises(ValueError, match="1 of 60 scores are not finite"):
            function(np.where(np.arange(60) == 3, np.nan, scores), same)


# The curve and what is read off it


@pytest.mark.parametrize("seed", SEEDS)
def test_the_curve_is_that_of_counting_at_each_threshold(seed):
    scores, same, _ = pairs_of(seed)
    far, tar, thresholds = roc(scores, same)
    assert thresholds.tolist() == [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    for f, t, threshold in zip(far, tar, thresholds, strict=True):
        assert f == sum(s >= threshold for s in scores[~same]) / sum(~same)
        assert t == sum(s >= threshold for s in scores[same]) / sum(same)


@pytest.mark.parametrize("seed", SEEDS)
def test_auc_is_the_mann_whitney_statistic_with_half_of_the_ties(seed):
    scores, same, _ = pairs_of(seed)
    wins = [(p > n) + (p == n) / 2 for p in scores[same] for n in scores[~same]]
    assert auc(scores, same) == pytest.approx(np.mean(wins), rel=1e-12)
    u = scipy.stats.mannwhitneyu(scores[same], scores[~same]).statistic
    assert auc(scores, same) == pytest.approx(u / (same.sum() * (~same).sum()), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_tar_at_far_is_the_largest_that_is_attained(seed):
    scores, same, _ = pairs_of(seed, n=200)
    for far in (0.01, 0.03, 0.1, 0.105, 0.5, 1.0):
        rates = [(np.mean(scores[~same] >= t), np.mean(scores[same] >= t)) for t in [np.inf, *scores]]
        assert tar_at_far(scores, same, far) == max(tar for found, tar in rates if found <= far)


def test_tar_at_far_of_a_hand_example():
    scores = np.asarray([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    same = np.asarray([True, False, True, True, False, True])
    assert tar_at_far(scores, same, 0.5) == 0.75
    assert tar_at_far(scores, same, 0.99) == 0.75  # not part of the way to 1
    assert tar_at_far(scores, same, 1.0) == 1.0
    with pytest.raises(ValueError, match=r"far=0.4 needs at least 3 pairs of two classes, and there are 2"):
        tar_at_far(scores, same, 0.4)
    with pytest.raises(ValueError, match=r"far=0.001 needs at least 1000 pairs of two classes, and there are 2"):
        tar_at_far(scores, same, 0.001)
    for far in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"is not in \(0, 1\]"):
            tar_at_far(scores, same, far)


def test_a_far_of_just_one_accepted_pair_is_measured_exactly():
    for n in (3, 7, 10, 49, 100, 1000):
        scores, same = np.append(np.arange(n) + 0.0, n - 1.5), np.append(np.zeros(n, bool), True)
        assert tar_at_far(scores, same, 1 / n) == 1.0


def test_equal_error_rate_of_hand_examples():
    """Between (0, 1/2) and (1/2, 1) the rates cross at 1/4; where a threshold has them equal, there."""
    same = np.asarray([True, False, True, False])
    assert equal_error_rate(np.asarray([4.0, 3.0, 2.0, 1.0]), same) == pytest.approx(0.5)
    assert equal_error_rate(np.asarray([4.0, 3.0, 3.0, 1.0]), same) == pytest.approx(0.25)
    assert equal_error_rate(np.zeros(4), same) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_error_rate_is_where_the_lines_between_the_points_cross(seed):
    scores, same, _ = pairs_of(seed)
    far, tar, _ = roc(scores, same)
    fine = np.linspace(0, len(far) - 1, 200 * (len(far) - 1) + 1)
    f, t = np.interp(fine, np.arange(len(far)), far), np.interp(fine, np.arange(len(tar)), tar)
    i = np.abs(f - (1 - t)).argmin()
    assert equal_error_rate(scores, same) == pytest.approx(f[i], abs=1e-3)


def test_perfect_scores_and_those_of_chance():
    same, fold = np.arange(4000) % 2 == 0, np.arange(4000) // 400
    assert verification_accuracy(same + 0.0, same, fold) == (1.0, 0.0)
    assert (auc(same + 0.0, same), equal_error_rate(same + 0.0, same), tar_at_far(same + 0.0, same, 1e-3)) == (1, 0, 1)
    assert (auc(0.0 - same, same), equal_error_rate(0.0 - same, same), tar_at_far(0.0 - same, same, 0.9)) == (0, 1, 0)
    noise = np.random.RandomState(0).rand(4000)
    accuracy, error = verification_accuracy(noise, same, fold)
    assert accuracy == pytest.approx(0.5, abs=0.03)
    assert 0 < error < 0.02
    assert auc(noise, same) == pytest.approx(0.5, abs=0.03)
    assert equal_error_rate(noise, same) == pytest.approx(0.5, abs=0.03)
    assert tar_at_far(noise, same, 0.1) == pytest.approx(0.1, abs=0.03)


# Identification


def test_cosines_are_those_of_the_rows():
    x, y = np.random.RandomState(0).randn(2, 9, 4)
    np.testing.assert_allclose(cosines(x, y), [cosine(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-12)
    assert cosines(np.zeros((1, 4)), y[:1]) == 0.0


def test_embeddings_of_two_sizes_are_not_compared():
    x, y, labels = np.ones((9, 4)), np.ones((9, 1)), np.zeros(9, int)
    for compared in (lambda: cosines(x, y), lambda: knn_accuracy(x, labels, y, labels, 1)):
        with pytest.raises(ValueError, match="vectors of 4 numbers and the second's of 1: only"):
            compared()


@pytest.mark.parametrize("cells", [1, 100, 2**24])
@pytest.mark.parametrize("seed", SEEDS)
def test_rank1_equals_the_loop_over_all_probes_in_whatever_chunks(seed, cells, monkeypatch):
    monkeypatch.setattr(metrics.verification, "CELLS", cells)
    x, labels = clusters(seed)
    labels[:2] = [100, 101]  # alone in their classes: no probes, but in the gallery
    right = []
    for i in range(2, len(x)):
        similar = [-np.inf if j == i else cosine(x[i], x[j]) for j in range(len(x))]
        right.append(labels[int(np.argmax(similar))] == labels[i])
    assert rank1(x, labels) == np.mean(right)


def test_an_image_alone_in_its_class_is_no_probe_and_is_mistaken_for_others():
    x = np.asarray([[1.0, 0.0], [1.0, 1.0], [1.0, 0.1]])
    assert rank1(x, np.asarray([0, 0, 1])) == 0.0
    assert rank1(x, np.asarray([0, 1, 0])) == 1.0
    with pytest.raises(ValueError, match="all 3 are of different classes"):
        rank1(x, np.asarray([0, 1, 2]))


def test_of_equally_similar_images_the_fraction_of_the_class_counts():
    """A network that has collapsed is right by chance, in whatever order the images come."""
    labels = np.repeat(np.arange(3), 4)
    x = np.random.RandomState(0).rand(12, 1) * np.ones((12, 5))
    assert rank1(x, labels) == pytest.approx(3 / 11)


@pytest.mark.parametrize("cells", [1, 100, 2**24])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_knn_accuracy_equals_the_loop(k, cells, monkeypatch):
    monkeypatch.setattr(metrics.verification, "CELLS", cells)
    for seed in SEEDS:
        x, labels = clusters(seed, spread=1.5)
        labels = 10 * labels + 3  # need not be 0 … C − 1
        train, test = np.arange(0, 20), np.arange(20, 30)
        right = 0
        for i in test:
            similar = np.asarray([cosine(x[i], x[j]) for j in train])
            votes: dict[int, list[float]] = {}
            for j in np.argsort(-similar)[:k]:
                votes.setdefault(int(labels[j]), []).append(similar[j])
            right += max(votes, key=lambda label: (len(votes[label]), sum(votes[label]))) == labels[i]
        assert knn_accuracy(x[train], labels[train], x[test], labels[test], k) == right / len(test)


def test_among_classes_of_as_many_neighbours_the_larger_sum_of_cosines_decides():
    """Two of class 5, at 10° and 50°, two of class 2, at 25° and 30°; the nearest of all is alone in its class."""
    degrees = np.asarray([10.0, 50.0, 25.0, 30.0, 5.0])
    train = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    labels, probe = np.asarray([5, 5, 2, 2, 9]), np.asarray([[2.0, 0.0]])
    for k, wins in ((1, 9), (2, 9), (4, 2), (5, 2)):
        assert knn_accuracy(train, labels, probe, np.asarray([wins]), k) == 1.0
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k={k} is not between 1 and the 5"):
            knn_accuracy(train, labels, probe, np.asarray([9]), k)


# Angles


def test_class_angles_of_a_hand_example():
    """Classes spread by ±10° about 0° and by ±20° about 50°, and one of a single image at 170°."""
    degrees = np.asarray([-10.0, 10.0, 30.0, 70.0, 170.0])
    length = np.asarray([[1.0], [2.0], [3.0], [0.5], [0.2]])
    x = length * np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    found = class_angles(x, np.asarray([4, 4, 0, 0, 9]))
    assert found["intra_class_angle"] == pytest.approx((10 + 10 + 20 + 20 + 0) / 5)
    assert found["smallest_inter_class_angle"] == pytest.approx(50.0)
    assert found["inter_class_angle"] == pytest.approx((50 + 50 + 120) / 3)
    with pytest.raises(ValueError, match="two of them or more, got 1"):
        class_angles(x, np.zeros(5, int))


@pytest.mark.parametrize("cells", [1, 2**24])
@pytest.mark.parametrize("seed", SEEDS)
def test_class_angles_equal_the_loops(seed, cells, monkeypatch):
    monkeypatch.setattr(metrics.verification, "CELLS", cells)
    x, labels = clusters(seed)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = [u[labels == c].mean(0) for c in range(6)]

    def angle(a, b):
        return np.degrees(np.arccos(np.clip(cosine(a, b), -1, 1)))

    nearest = [min(angle(means[c], means[z]) for z in range(6) if z != c) for c in range(6)]
    expected = (np.mean([angle(a, means[c]) for a, c in zip(u, labels, strict=True)]), np.mean(nearest), min(nearest))
    assert tuple(class_angles(x, labels).values()) == pytest.approx(expected, abs=1e-6)


def test_an_angle_near_0_keeps_its_digits():
    x = np.asarray([[1.0, -1e-9], [1.0, 1e-9], [0.0, 1.0], [0.0, 1.0]])
    found = class_angles(x, np.asarray([0, 0, 1, 1]))
    assert found["intra_class_angle"] == pytest.approx(np.degrees(0.5e-9), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_number_looks_at_the_length_of_embeddings(seed):
    x, labels = clusters(seed)
    long = x * np.exp(3 * np.random.RandomState(seed + 100).randn(len(x), 1))
    pairs = drawn_pairs(labels, folds=3, per_fold=20, seed=seed)

    def numbers(x):
        scores = cosines(x[pairs.first], x[pairs.second])
        return [
            *verification_accuracy(scores, pairs.same, pairs.fold),
            auc(scores, pairs.same),
            equal_error_rate(scores, pairs.same),
            tar_at_far(scores, pairs.same, 0.1),
            rank1(x, labels),
            knn_accuracy(x[:20], labels[:20], x[20:], labels[20:], 3),
            *class_angles(x, labels).values(),
        ]

    assert numbers(long) == pytest.approx(numbers(x), rel=1e-9)
