"""Pairs to verify: drawn from labels, and read from a list like LFW's."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from chex import assert_trees_all_equal as same_batches

from data.dataset import MalformedDataError, MissingDataError
from data.verification_pairs import drawn_pairs, read_images, read_pairs
from tests.test_recognition_data import levels, picture


def pair_set(pairs, fold):
    """How often each pair of one class is there, and each of two."""
    rows = [row for row in zip(pairs.first, pairs.second, pairs.same, pairs.fold, strict=True) if row[3] == fold]
    return [Counter(frozenset((int(a), int(b))) for a, b, same, _ in rows if same == kind) for kind in (True, False)]


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_as_labelled_and_folds_share_no_class(seed):
    labels = np.random.default_rng(seed).integers(0, 90, 700) * 7 - 100
    pairs = drawn_pairs(labels, folds=10, per_fold=60, seed=seed)
    np.testing.assert_array_equal(pairs.same, labels[pairs.first] == labels[pairs.second])
    assert (pairs.first != pairs.second).all()
    classes = []
    for fold in range(10):
        found = pair_set(pairs, fold)
        assert [set(counts.values()) for counts in found] == [{1}, {1}]  # none is there twice
        assert [len(counts) for counts in found] == [30, 30]
        classes.append({int(labels[i]) for counts in found for pair in counts for i in pair})
    assert not any(a & b for a, b in combinations(classes, 2))
    again, other = (drawn_pairs(labels, folds=10, per_fold=60, seed=s) for s in (seed, seed + 1))
    same_batches(vars(again), vars(pairs))
    assert not np.array_equal(other.first, pairs.first)


def test_where_pairs_are_few_all_are_taken_and_kinds_stay_balanced():
    for labels in ([3, 3, 5, 5, 5, 9], [3, 3, 3, 3, 5]):  # of one class there are 4 and 6, of two 11 and 4
        found = pair_set(drawn_pairs(np.asarray(labels), folds=1, per_fold=600), 0)
        assert [Counter(counts.values()) for counts in found] == [{1: 4}, {1: 4}]


def test_every_pair_is_drawn_as_often():
    labels = np.asarray([0, 0, 0, 0, 1, 1, 1, 2])
    drawn = [Counter(), Counter()]
    for seed in range(2000):
        for counts, found in zip(drawn, pair_set(drawn_pairs(labels, folds=1, per_fold=6, seed=seed), 0), strict=True):
            counts += found
    for same, counts in zip((True, False), drawn, strict=True):
        every = {frozenset(p) for p in combinations(range(8), 2) if (labels[p[0]] == labels[p[1]]) == same}
        assert set(counts) == every
        expected = 2000 * 3 / len(every)
        assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_pairs_of_many_images_or_classes_are_in_every_fold():
    assert len(drawn_pairs(np.random.default_rng(0).integers(0, 200, 10_000)).first) == 6000
    few = drawn_pairs(np.arange(100_000) % 4, folds=2, per_fold=1000)  # 6·10⁸ pairs in a fold, which nobody lists
    np.testing.assert_array_equal(few.same, few.first % 4 == few.second % 4)
    for seed in range(20):  # five of fifty classes have two images
        pairs = drawn_pairs(np.concatenate([np.arange(50), np.arange(5)]), folds=5, per_fold=10, seed=seed)
        assert np.bincount(pairs.fold[pairs.same]).tolist() == [1] * 5


def test_labels_that_make_no_folds_are_refused():
    for labels, fields, message in (
        (np.arange(19), {}, "10 folds need 20 classes, 10 of them with two images or more: there are 19, 0 with"),
        (np.repeat(np.arange(19), 2), {}, "there are 19, 19 with two or more"),
        (np.concatenate([np.arange(30), np.arange(9)]), {}, "there are 30, 9 with two or more"),
        (np.asarray([0, 1, 2]), {"folds": 1}, "there are 3, 0 with two"),
        (np.repeat(np.arange(9), 2), {"folds": 0}, "folds=0 must be"),
        (np.repeat(np.arange(9), 2), {"folds": 2, "per_fold": 1}, "per_fold=1 at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn_pairs(labels, **fields)


@pytest.fixture
def people(tmp_path):
    for c, (name, count) in enumerate({"Ann_A": 3, "Bob": 2, "Cy": 12}.items()):
        for i in range(1, count + 1):
            picture(tmp_path / "faces" / name / f"{name}_{i:04d}{'.jpg' if c else '.png'}", 50 * c + 2 * i, "L", (9, 7))
    return tmp_path / "faces"


def test_a_list_of_pairs_is_read(people, tmp_path):
    lines = "2 2|Ann_A 1 3|Cy 2 11|Ann_A 2 Bob 1|Cy 11 Bob 2|Bob 1 2|Cy 12 1|Bob 2 Ann_A 1|Ann_A 3 Cy 5|"
    (tmp_path / "pairs.txt").write_text(lines.replace(" ", "\t").replace("|", "\n"))
    files, pairs = read_pairs(tmp_path / "pairs.txt", people)
    names = [f"{files[a].stem} {files[b].stem}" for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert names[:3] == ["Ann_A_0001 Ann_A_0003", "Cy_0002 Cy_0011", "Ann_A_0002 Bob_0001"]
    assert len(names) == 8
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.fold.tolist() == [0] * 4 + [1] * 4
    x = read_images(files, (4, 4, 3))
    assert (x.shape, x.dtype) == ((len(set(files)), 4, 4, 3), np.float32)
    expected = [50 * ["Ann_A", "Bob", "Cy"].index(f.parent.name) + 2 * int(f.stem[-4:]) for f in files]
    np.testing.assert_allclose(levels({"x": x}), expected, atol=2)  # JPEG
    (tmp_path / "one.txt").write_text("1\n\nBob 1 2\r\nBob 1 Cy 1\n\n")  # one fold, blanks
    files, pairs = read_pairs(str(tmp_path / "one.txt"), str(people))
    assert [file.name for file in files] == ["Bob_0001.jpg", "Bob_0002.jpg", "Cy_0001.jpg"]
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.fold.tolist()) == ([0, 0], [1, 2], [0, 0])
    for shape in ((4, 5, 3), (4, 4), (4, 4, 2)):
        with pytest.raises(ValueError, match="squares of 1 or 3 channels"):
            read_images(files, shape)
    for path, folder, message in (("no.txt", people, "no list of pairs '.*no.txt'"), ("one.txt", "no", "folder 'no'")):
        with pytest.raises(MissingDataError, match=message):
            read_pairs(tmp_path / path, folder)


def test_a_list_of_pairs_with_a_mistake_names_its_line(people, tmp_path):
    mistakes = {
        "1 1|Bob 1 2|Bob 1|": "line 3: 'Bob 1' is neither name i j nor",
        "1 1|Bob 1 two|Bob 1 Cy 1|": "line 2: 'Bob 1 two' is neither",
        "Bob 1 2|": "line 1: 'Bob 1 2' is neither the number of folds",
        "0 4|": "line 1: '0 4' is neither",
        "|": "line 1: '' is neither",
        "1 1|Bob 1 2|": "has 1 pairs; its first line announces 1 folds of 1 of one class and 1",
        "1 1|Bob 1 Cy 1|Bob 1 2|": "line 2: 'Bob 1 Cy 1' stands where a pair is name i j,",
        "1 1|Bob 1 2|Bob 1 2|": "line 3: 'Bob 1 2' stands where a pair is name i name j,",
        "1 1|Bob 1 2|Bob 1 Bob 2|": "line 3: 'Bob 1 Bob 2' stands where",
        "1 1|Bob 1 3|Bob 1 Cy 1|": r"line 2: there is no image .*faces/Bob/Bob_0003 with any",
        "1 1|Bob 1 2|Bob 1 Di 1|": r"line 3: there is no image .*faces/Di/Di_0001 with any",
    }
    for text, message in mistakes.items():
        (tmp_path / "pairs.txt").write_text(text.replace("|", "\n"))
        with pytest.raises(MissingDataError if "no image" in message else MalformedDataError, match=message):
            read_pairs(tmp_path / "pairs.txt", people)
