"""Do two embeddings show the same class, and which class does one show? By their cosine alone, so by no length.

Verification, of pairs with a score s and whether they are of one class; a pair is accepted where s ≥ t:

    (1)  accuracy of fold i:  pᵢ = the fraction of its pairs that are decided rightly at tᵢ, the threshold of most right
         decisions on all other folds;  p̄ = Σ pᵢ/F,  standard error √(Σ (pᵢ − p̄)²/(F − 1))/√F
         (LFW, Huang et al. 2007, report 07-49, view 2)
    (2)  FAR(t) = accepted pairs of two classes/all such pairs,  TAR(t) = accepted pairs of one class/all such pairs
    (3)  TAR@FAR=f = max {TAR(t) : FAR(t) ≤ f} (as of IJB-A, Klare et al., CVPR 2015): attained, not interpolated
    (4)  AUC = P(s⁺ > s⁻) + P(s⁺ = s⁻)/2, the area below TAR over FAR: the Mann–Whitney statistic
    (5)  EER = FAR = 1 − TAR, where the straight lines between the thresholds of (2) cross

Identification, of images among images:

    (6)  rank 1, leaving one out:  the fraction of images of whose class the most similar other one is. Where several
         are as similar, the fraction of them that are of the class counts
    (7)  k nearest neighbours:  the class of most of them; of the largest sum of cosines, where classes have as many

The thresholds of (1) lie in the middle between two scores, or at ±∞; of several that are as good, it is the middle one
in order, the lower of two. All in float64.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from metrics.features import check_sizes

CELLS = 2**24  # cosines that are held at once
TIED = 1e-12  # cosines no further apart are equal: copies of an image differ by rounding alone


def directions(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """x/‖x‖, in float64; that of 0 is 0."""
    x = np.asarray(x, np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0.0, norm, 1.0)


def cosines(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n e"]) -> Float[np.ndarray, " n"]:
    """Of each row of x and that of y: a pair's score.

    Raises:
      ValueError: the rows of one are longer than those of the other.
    """
    check_sizes(x, y)
    return np.sum(directions(x) * directions(y), axis=1)


def verification_accuracy(
    scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"], fold: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """The mean and the standard error of (1).

    Raises:
      ValueError: there are fewer than two folds, only pairs of one kind, or scores that are no numbers.
    """
    scores = _scored(scores, same)
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"a fold's threshold is chosen on the others: two folds are needed, got {len(folds)}")
    found = []
    for one in folds:
        own = fold == one
        accepted = scores[own] >= _best_threshold(scores[~own], same[~own])
        found.append(np.mean(accepted == same[own]))
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found)))


def _best_threshold(scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"]) -> float:
    false, true, at = _accepted(scores, same)
    right = true + (np.sum(~same) - false)
    best = np.flatnonzero(right == right.max())
    i = best[len(best) // 2]  # thresholds fall, so that this is the lower one of two
    if i in (0, len(at) - 1):  # nothing or everything is accepted
        return float("inf" if i == 0 else "-inf")
    middle = at[i] / 2 + at[i + 1] / 2
    return float(middle if middle > at[i + 1] else at[i])  # neighbours in float64 have no middle


def _accepted(
    scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Accepted pairs of two classes and of one, at thresholds that fall: ∞, and each score that there is."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of those of an equal score
    true = np.cumsum(same[order])[last]
    start = np.zeros(1, np.int64)
    return (
        np.concatenate([start, last + 1 - true]),
        np.concatenate([start, true]),
        np.concatenate([[np.inf], scores[order][last]]),
    )


def roc(
    scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """FAR and TAR of (2) at falling thresholds: first ∞, where nothing is accepted, then each score that there is.

    Raises:
      ValueError: there are only pairs of one kind, or scores that are no numbers.
    """
    false, true, thresholds = _accepted(_scored(scores, same), same)
    return false / false[-1], true / true[-1], thresholds


def tar_at_far(scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"], far: float) -> float:
    """Number (3).

    Raises:
      ValueError: as of `roc`, or as of `check_far`.
    """
    check_far(far, int(np.sum(~same)))
    found, tar, _ = roc(scores, same)
    return float(tar[found <= far][-1])


def check_far(far: float, impostors: int) -> None:
    """Whether a false accept rate can be told apart from 0 on so many pairs of two classes.

    Raises:
      ValueError: it cannot, or is no rate.
    """
    if not 0.0 < far <= 1.0:
        raise ValueError(f"far={far} is not in (0, 1]")
    if impostors < 1 or 1.0 / impostors > far:
        least = math.ceil(1.0 / far - 1e-9)
        raise ValueError(f"far={far:g} needs at least {least} pairs of two classes, and there are {impostors}")


def auc(scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"]) -> float:
    """Number (4); raises as `roc` does."""
    far, tar, _ = roc(scores, same)
    return float(np.trapezoid(tar, far))


def equal_error_rate(scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"]) -> float:
    """Number (5); raises as `roc` does."""
    far, tar, _ = roc(scores, same)
    above = far - (1.0 - tar)  # rises from −1 to 1
    i = int(np.argmax(above >= 0.0))
    part = above[i - 1] / (above[i - 1] - above[i])
    return float(far[i - 1] + part * (far[i] - far[i - 1]))


def _scored(scores: Float[np.ndarray, " n"], same: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are not finite")
    if same.all() or not same.any():
        raise ValueError(
            f"verification needs pairs of one class and pairs of two; {same.sum()} of {len(same)} are of one"
        )
    return np.asarray(scores, np.float64)


def rank1(embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> float:
    """Number (6), leaving one out. Images whose class has no other are no probes; they are in the gallery.

    Raises:
      ValueError: no class has two images.
    """
    unit = directions(embeddings)
    number, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    probes = np.flatnonzero(sizes[number] > 1)
    if not len(probes):
        raise ValueError(f"rank 1 needs a class of two images or more; all {len(labels)} are of different classes")
    found = []
    for rows in chunks(len(probes), len(unit)):
        own = probes[rows]
        similar = unit[own] @ unit.T
        similar[np.arange(len(own)), own] = -np.inf
        found.append(_right(similar, labels[own][:, None] == labels[None, :]))
    return float(np.concatenate(found).mean())


def _right(similar: Float[np.ndarray, "b n"], same: Bool[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Which share of the most similar ones is of the class."""
    tied = similar >= similar.max(axis=1, keepdims=True) - TIED
    return (tied & same).sum(axis=1) / tied.sum(axis=1)


def knn_accuracy(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m e"],
    test_labels: Int[np.ndarray, " m"],
    k: int,
) -> float:
    """The fraction of test examples that (7) gives their class.

    Raises:
      ValueError: there are no k training examples, or embeddings of two sizes.
    """
    check_sizes(train, test)
    if not 1 <= k <= len(train):
        raise ValueError(f"k={k} is not between 1 and the {len(train)} training examples")
    known, asked = directions(train), directions(test)
    classes, number = np.unique(train_labels, return_inverse=True)
    right = 0
    for rows in chunks(len(asked), len(known)):
        similar = asked[rows] @ known.T
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        place = np.arange(len(similar))[:, None] * len(classes) + number[nearest]
        weights = np.take_along_axis(similar, nearest, axis=1)
        size = len(similar) * len(classes)
        votes = np.bincount(place.ravel(), minlength=size).reshape(-1, len(classes))
        sums = np.bincount(place.ravel(), weights.ravel(), minlength=size).reshape(-1, len(classes))
        sums[votes < votes.max(axis=1, keepdims=True)] = -np.inf
        right += int(np.sum(classes[sums.argmax(axis=1)] == test_labels[rows]))
    return right / len(asked)


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Parts of the rows of a matrix of cosines, of at most CELLS of them unless a row has more."""
    size = max(1, CELLS // columns)
    return (slice(start, start + size) for start in range(0, rows, size))
