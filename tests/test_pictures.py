"""A folder of one's own pictures: what is read, what is held out, and training on them."""

import numpy as np
import pytest
from PIL import Image

from data import files, pictures
from data.dataset import MalformedDataError, MissingDataError
from data.files import FileSource
from data.pictures import Pictures
from tests.scripts import here
from training.cli import load_experiment, parse


@pytest.fixture
def folder(tmp_path):
    """Forty pictures of one grey each, in a folder and one within; beside them what is no picture."""
    (tmp_path / "mine" / "trip").mkdir(parents=True)
    (tmp_path / "mine" / ".thumbnails").mkdir()
    for i in range(40):
        place = tmp_path / "mine" / ("trip" if i % 3 == 0 else "")
        Image.new("RGB", (12, 8), (5 * i,) * 3).save(place / f"{i:02}.png")
    Image.new("RGB", (12, 8), (255,) * 3).save(tmp_path / "mine" / ".thumbnails" / "a.png")
    (tmp_path / "mine" / "notes.txt").write_text("no picture")
    return tmp_path / "mine"


def greys(data, split):
    return sorted(round(127.5 * (float(x.mean()) + 1.0)) for x in data.arrays(split, 99)["x"])


def test_every_picture_is_in_one_split(folder):
    data = Pictures(path=str(folder), size=8)
    train, test = greys(data, "train"), greys(data, "test")
    assert len(test) == 4
    assert sorted(train + test) == [5 * i for i in range(40)]
    assert data.arrays("train", 2)["x"].shape == (2, 8, 8, 3)
    assert set(data.arrays("train", 2)) == {"x"}
    assert data.num_classes == 0


def test_a_new_picture_moves_no_other(folder):
    held = set(pictures._splits(Pictures(path=str(folder), size=8))[1])
    Image.new("RGB", (12, 8)).save(folder / "new.png")
    pictures._splits.cache_clear()
    grown = set(pictures._splits(Pictures(path=str(folder), size=8))[1])
    assert len(held ^ grown - {str(folder / "new.png")}) <= 1


def test_a_second_folder_is_held_out(folder):
    data = Pictures(path=str(folder), test=str(folder / "trip"), size=8, channels=1)
    assert greys(data, "train") == [5 * i for i in range(40)]
    assert greys(data, "test") == [5 * i for i in range(0, 40, 3)]


def test_too_many_to_hold_are_read_as_they_are_asked_for(folder, monkeypatch):
    data = Pictures(path=str(folder), size=6)
    whole = {split: data.arrays(split, 99)["x"] for split in ("train", "test")}
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    pictures._source.cache_clear()
    assert isinstance(data.source("train"), FileSource)
    for split, x in whole.items():
        np.testing.assert_array_equal(data.arrays(split, 99)["x"], x)
    pictures._source.cache_clear()


def test_what_is_no_folder_of_pictures_is_told(tmp_path):
    with pytest.raises(MissingDataError, match="there is no folder"):
        Pictures(path=str(tmp_path / "none")).source("train")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(MissingDataError, match=r"there is no folder '.*a\.txt', which is a file"):
        Pictures(path=str(tmp_path / "a.txt")).source("train")
    with pytest.raises(MalformedDataError, match=r"0 images \(\.png"):
        Pictures(path=str(tmp_path)).source("train")
    with pytest.raises(ValueError, match="held_out"):
        Pictures(path="mine", held_out=1.0)


def test_all_that_cannot_be_read_is_told_at_once(folder):
    names = [f"broken{i}.png" for i in range(7)]
    for name in names:
        (folder / name).write_text("no picture")
    with pytest.raises(MalformedDataError, match="is no image that can be read: its format is unknown") as caught:
        Pictures(path=str(folder), test=str(folder / "trip"), size=8).source("train")
    assert sum(name in str(caught.value) for name in names) == files.NAMED
    assert "and 2 more of 47 files" in str(caught.value)


def test_help_is_there_before_the_folder_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(load_experiment("digits_ddpm"), ["--data", "pictures", "--help"], "train.py")
    assert caught.value.code == 0
    assert "--held-out" in capsys.readouterr().out


def test_they_are_named_on_the_command_line():
    experiment = parse(load_experiment("digits_ddpm"), ["--data", "pictures", "--data.path", "mine"], "train.py")
    assert experiment.data == Pictures(path="mine")


@pytest.mark.thorough
def test_an_experiment_takes_them_from_the_command_line(folder, tmp_path):
    flags = ("--data", "pictures", "--data.path", folder, "--data.size", "8", "--workdir", tmp_path / "run")
    code, out, err = here("train.py", "digits_ddpm", "--tiny", *flags)
    assert code == 0, err
    assert (tmp_path / "run" / "summary.json").is_file()
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    assert "loss" in out
