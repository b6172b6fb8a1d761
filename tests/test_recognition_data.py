"""Data to recognise: open sets, folders of images, pairs to verify, runs of one class, a million made-up classes."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from chex import assert_trees_all_equal as same_batches
from PIL import Image
from scipy import stats

from data import folders
from data.arrays import ArraySource, flipped
from data.dataset import Batches, Dataset, MalformedDataError, MissingDataError, UnknownDataError
from data.digits import Digits
from data.folders import FileSource, ImageFolder
from data.grouped import Grouped
from data.image_tokens import ImageTokens
from data.omniglot import OmniglotOpenSet, Shifts, shifted
from data.prototypes import Prototypes, prototypes, splitmix64
from data.toys import TwoMoons
from data.verification_pairs import drawn_pairs, read_images, read_pairs
from tests.conftest import needs
from training import config

SIZES = {"ant": 10, "bee": 5, "cat": 20, "dog": 1}


def picture(path, level, mode="RGB", size=(6, 6)):
    """One image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * 3).save(path)


@pytest.fixture
def animals(tmp_path):
    """Each image's level is a number of its own: 40 times its class, and its place in the class from 1."""
    for c, (name, count) in enumerate(SIZES.items()):
        for i in range(count):
            picture(path := tmp_path / "animals" / name / f"{i:02d}.png", 40 * c + i + 1)
            (image := Image.open(path)).paste((0, 0, 0), (5, 0, 6, 6))  # all but the last column, which is black
            image.save(path)
    return tmp_path / "animals"


def levels(arrays):
    return np.round((arrays["x"].max(axis=(1, 2, 3)) + 1.0) * 127.5).astype(int)


def is_pure(source, numbers, seed=5):
    """The batch; reading it in two halves equals reading it whole, and another seed or other numbers give another."""
    records = numbers % len(source)
    whole = source.read(records, seed, numbers)
    halves = [source.read(records[part], seed, numbers[part]) for part in (slice(0, 37), slice(37, None))]
    same_batches({name: np.concatenate([half[name] for half in halves]) for name in whole}, whole)
    assert not np.array_equal(source.read(records, seed + 1, numbers)["x"], whole["x"])
    assert not np.array_equal(source.read(records, seed, numbers + len(numbers))["x"], whole["x"])
    return whole


@needs("omniglot")
def test_omniglot_holds_out_whole_alphabets():
    from data.tfds import open_split

    data = OmniglotOpenSet()
    train, test = (data.arrays(split, 10_000) for split in ("train", "test"))
    assert (train["x"].shape, test["x"].shape) == ((2720, 28, 28, 1), (2120, 28, 28, 1))
    assert (train["x"].min(), np.median(train["x"]), train["x"].max()) == (-1.0, 1.0, 1.0)  # most is paper
    for arrays, classes in ((train, 136), (test, 106)):
        assert Counter(arrays["label"].tolist()) == dict.fromkeys(range(classes), 20)
    assert (data.num_classes, data.shape, data.bin_width, data.open_set) == (136, (28, 28, 1), 2 / 255, True)
    old, new = (list(open_split("omniglot", part)) for part in ("small1", "small2"))
    known = {int(r["alphabet"]) for r in old}
    new = [r for r in new if int(r["alphabet"]) not in known]
    assert not {int(r["label"]) for r in new} & {int(r["label"]) for r in old}
    for kept, arrays in ((old, train), (new, test)):
        original = sorted({int(r["label"]) for r in kept})
        assert [original[i] for i in arrays["label"]] == [int(r["label"]) for r in kept]
    whole = OmniglotOpenSet(size=105).arrays("test", 30)["x"][..., 0]
    np.testing.assert_array_equal(whole, [np.where(r["image"][..., 0], 1.0, -1.0) for r in new[:30]])


@needs("omniglot")
def test_quarter_turns_are_training_classes_of_their_own():
    plain, turned = OmniglotOpenSet(size=14), OmniglotOpenSet(size=14, rotations=True)
    assert turned.num_classes == 4 * 136
    train, more = plain.arrays("train", 10_000), turned.arrays("train", 20_000)
    assert len(more["label"]) == 4 * 2720
    for k in range(4):
        here = more["label"] // 136 == k
        np.testing.assert_array_equal(more["x"][here], np.rot90(train["x"], k, axes=(1, 2)))
        np.testing.assert_array_equal(more["label"][here] % 136, train["label"])
    same_batches(plain.arrays("test", 100), turned.arrays("test", 100))


@needs("omniglot")
def test_training_drawings_are_moved_and_others_are_not():
    plain, moved = OmniglotOpenSet(size=20), OmniglotOpenSet(size=20, shift=3)
    records, numbers = np.arange(1000, 1064), np.arange(1000, 1064)  # over two blocks of what is drawn
    batch = is_pure(moved.source("train"), numbers)
    still = plain.source("train").read(records, 5, numbers)
    np.testing.assert_array_equal(still["label"], batch["label"])
    found = set()
    for x, y in zip(still["x"], batch["x"], strict=True):
        around = np.pad(x, ((3, 3), (3, 3), (0, 0)), constant_values=1.0)
        places = [(i, j) for i in range(7) for j in range(7) if (around[i : i + 20, j : j + 20] == y).all()]
        found |= {places[0]}  # which fails where the drawing is in no place
    assert len(found) > 25
    for split in ("train", "test"):
        same_batches(moved.arrays(split, 50), plain.arrays(split, 50))
    same_batches(moved.source("test").read(records, 5, numbers), plain.source("test").read(records, 5, numbers))


def test_shifts_are_uniform_and_bring_in_paper():
    counts = Counter(map(tuple, Shifts(2).draw(np.random.default_rng(0), 25_000)["shift"].tolist()))
    assert set(counts) == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    assert max(abs(count / 1000 - 1) for count in counts.values()) < 0.15
    x = -np.ones((2, 3, 3, 1), np.float32)
    x[:, 1, 1] = 0.0
    down_left, up = shifted(x, np.asarray([[1, -1], [-2, 0]]))[..., 0]
    np.testing.assert_array_equal(down_left, [[1, 1, 1], [-1, -1, 1], [0, -1, 1]])
    np.testing.assert_array_equal(up, [[-1, -1, -1], [1, 1, 1], [1, 1, 1]])


def test_a_folder_holds_out_a_part_of_each_class(animals):
    data = ImageFolder(path=str(animals), size=6, held_out=0.3)
    train, test = (data.arrays(split, 100) for split in ("train", "test"))
    assert Counter(train["label"].tolist()) == {0: 7, 1: 3, 2: 14, 3: 1}  # an only image is trained on
    assert Counter(test["label"].tolist()) == {0: 3, 1: 2, 2: 6}
    for arrays in (train, test):
        np.testing.assert_array_equal(levels(arrays) // 40, arrays["label"])
    both = np.concatenate([levels(train), levels(test)])
    assert sorted(both) == [40 * c + i + 1 for c, count in enumerate(SIZES.values()) for i in range(count)]
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert (data.num_classes, data.shape, data.bin_width) == (4, (6, 6, 3), 2 / 255)
    assert (train["x"].dtype, train["label"].dtype) == (np.float32, np.int32)
    assert not np.array_equal(train["label"], np.sort(train["label"]))  # the first records are of all classes
    assert len(ImageFolder(path=str(animals), size=6, held_out=0.01).source("test")) == 3  # one at least


@pytest.mark.parametrize("open_set", [False, True])
def test_the_split_does_not_depend_on_the_order_of_a_listing(animals, monkeypatch, open_set):
    data, listing = ImageFolder(path=str(animals), size=6, held_out=0.5, open_set=open_set), Path.iterdir
    before = [data.arrays(split, 100) for split in ("train", "test")]
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(listing(folder), reverse=True)))
    folders._splits.cache_clear()
    folders._source.cache_clear()
    for split, arrays in zip(("train", "test"), before, strict=True):
        same_batches(data.arrays(split, 100), arrays)


def test_a_folder_holds_out_whole_classes(animals):
    data = ImageFolder(path=str(animals), size=6, open_set=True)
    train, test = (data.arrays(split, 100) for split in ("train", "test"))
    kept = [list(SIZES).index(name) for name in data.class_names]
    assert len(kept) == data.num_classes == 2
    held = [c for c in range(4) if c not in kept]
    for arrays, classes in ((train, kept), (test, held)):
        np.testing.assert_array_equal(levels(arrays) // 40, np.asarray(classes)[arrays["label"]])
        assert len(arrays["x"]) == sum(list(SIZES.values())[c] for c in classes)
    for i in range(30):
        picture(animals / f"more{i:02d}" / "a.png", i)
    data = ImageFolder(path=str(animals), size=6, open_set=True, held_out=0.25)
    assert data.num_classes == 26  # round(0.25 · 34) of 34 are held out
    assert set(np.unique(data.arrays("test", 100)["label"])) == set(range(8))


def test_a_second_folder_is_held_out(animals, tmp_path):
    def numbered(data):
        test = data.arrays("test", 9)
        return dict(zip(levels(test).tolist(), test["label"].tolist(), strict=True))

    picture(tmp_path / "known" / "cat" / "a.JPG", 81)
    picture(tmp_path / "known" / "bee" / "b.ppm", 42)
    fields = {"path": str(animals), "test": str(tmp_path / "known")}
    data = ImageFolder(**fields, size=6)
    assert len(data.source("train")) == 36
    assert numbered(data) == {42: 1, 81: 2}  # as in training
    picture(tmp_path / "known" / "zebra" / "c.bmp", 200)
    with pytest.raises(MalformedDataError, match=r"known has the class 'zebra', which .*animals does not have; .*open"):
        ImageFolder(**fields, size=5).source("train")
    data = ImageFolder(**fields, size=5, open_set=True)
    assert data.num_classes == 4
    assert numbered(data) == {42: 0, 81: 1, 200: 2}


def test_files_of_any_kind_are_cut_and_scaled_alike(tmp_path):
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255  # the centred square is white
    for name in ("a", "b", ".cache"):
        (tmp_path / name).mkdir()
        for i, suffix in enumerate((".png", ".jpeg", ".bmp", ".webp", ".pgm")):
            Image.fromarray(wide).save(tmp_path / name / f"{i}{suffix}")
    Image.fromarray(wide.astype(np.uint16) * 256).save(tmp_path / "a" / "deep.png")
    Image.fromarray(wide > 127).save(tmp_path / "a" / "bit.PNG")
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / "a" / name).write_text("no image")
    for channels in (1, 3):
        data = ImageFolder(path=str(tmp_path), size=10, channels=channels)
        assert len(data.source("train")) + len(data.source("test")) == 12
        for split in ("train", "test"):
            x = data.arrays(split, 20)["x"]
            assert x.shape[1:] == data.shape == (10, 10, channels)
            assert x.min() > 0.98


def test_a_folder_too_large_to_hold_is_decoded_as_it_is_read(animals, monkeypatch):
    data = ImageFolder(path=str(animals), size=6, channels=1, flip=True)
    held = data.source("train")
    assert isinstance(held, ArraySource)
    monkeypatch.setattr(folders, "IN_MEMORY", 36 * 32 - 1)  # there are 32 training images, and 4 held out
    folders._source.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(folders, "read_image", None)  # nothing is opened, not for the labels either
        read, grouped = data.source("train"), Grouped(data=data, each=3).source("train")
    assert isinstance(read, FileSource)
    assert read.threads == grouped.threads == 8
    same_batches(Batches(read, 16, seed=2)[3], Batches(held, 16, seed=2)[3])
    mirrored = Batches(held, 16, seed=2)[3]["x"][:, 0, :, 0].argmin(axis=1) == 0
    np.testing.assert_array_equal(mirrored, flipped(2, np.arange(48, 64)))
    test = data.source("test")
    assert isinstance(test, ArraySource)
    assert (test.read(np.arange(4), 2, np.arange(48, 52))["x"][:, 0, :, 0].argmin(axis=1) == 5).all()
    batch = Batches(grouped, 12, seed=0)[0]
    assert sorted(batch["label"].reshape(4, 3)[:, 0]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(levels(batch) // 40, batch["label"])
    folders._source.cache_clear()


def test_a_folder_that_is_no_set_of_classes_says_why(tmp_path):
    path, other, unread = tmp_path / "set", tmp_path / "other", r"2\.png is no image that can be read"
    own = {"test": str(other)}
    steps = [
        (lambda: None, {}, r"there is no folder '.*set'"),
        (lambda: picture(path / "loose.png", 0), {}, "set holds no folders; each class is a folder"),
        (lambda: picture(path / "a/1.png", 0), {}, "set has only the class 'a'"),
        (lambda: (path / "b").mkdir(), {}, r"the class folder .*b has no image: none of .png, "),
        (lambda: picture(path / "b/1.png", 0), {}, r"no class of .*set has two images"),
        (lambda: None, {"open_set": True}, "set has 2 classes; with 2 of them held out, fewer than two"),
        (lambda: None, own, r"there is no folder '.*other'"),
        (lambda: picture(other / "c/1.png", 0), {**own, "open_set": True}, "other has only the class 'c'"),
        (lambda: (path / "b/2.png").write_text("no image"), {"size": 5}, unread),
        (lambda: (path / "b/2.png").write_text("P6 6 6 255\n a part"), {"size": 6}, unread),
    ]
    for change, fields, message in steps:
        change()
        data = ImageFolder(**{"path": str(path), "size": 4, **fields})
        kind = MissingDataError if "there is no folder" in message else MalformedDataError
        with pytest.raises(kind, match=message):
            [data.source(split) for split in ("train", "test")]


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
    parts = [Batches(batches.source, 80, seed=3, process=p, processes=8)[57]["x"] for p in range(8)]
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


def test_settings_are_registered_and_those_out_of_range_refused():
    for make, name, values in (
        (OmniglotOpenSet, "size", (0,)),
        (OmniglotOpenSet, "shift", (-1, 28)),
        (partial(ImageFolder, path="a", size=4), "held_out", (0.0, 1.0)),
        (partial(ImageFolder, path="a"), "size", (0,)),
        (partial(Grouped, data=Digits()), "each", (0,)),
        (Prototypes, "classes", (1, 2**31 + 1)),
        (Prototypes, "dimensions", (1,)),
        (Prototypes, "noise", (-0.1,)),
    ):
        for value in values:
            with pytest.raises(ValueError, match=f"{name}={value}"):
                make(**{name: value})
    assert {"omniglot_open_set", "image_folder", "grouped", "prototypes"} <= set(config.options(Dataset))
    for data in (OmniglotOpenSet(shift=2), ImageFolder(path="a", size=8), Prototypes(), Grouped()):
        assert config.decode(config.encode(data)) == data
        with pytest.raises(UnknownDataError, match="train and test"):
            data.source("validation")
    for inner, message in ((TwoMoons(), "TwoMoons has none"), (Prototypes(), "Prototypes is drawn without end")):
        with pytest.raises(ValueError, match=message):
            Grouped(data=inner).source("train")
