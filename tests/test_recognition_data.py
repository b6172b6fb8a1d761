"""Data to recognise: open sets, and folders of images."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from chex import assert_trees_all_equal as same_batches
from PIL import Image

from data import files, folders
from data.arrays import ArraySource, flipped
from data.dataset import Batches, Dataset, MalformedDataError, MissingDataError, UnknownDataError
from data.digits import Digits
from data.files import FileSource
from data.folders import ImageFolder
from data.grouped import Grouped
from data.omniglot import OmniglotOpenSet, Shifts, shifted
from data.prototypes import Prototypes
from data.toys import TwoMoons
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


@pytest.mark.thorough
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
    monkeypatch.setattr(files, "IN_MEMORY", 36 * 32 - 1)  # there are 32 training images, and 4 held out
    folders._source.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(files, "read_image", None)  # nothing is opened, not for the labels either
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
        (lambda: None, {"path": __file__}, r"there is no folder '.*\.py', which is a file"),
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
