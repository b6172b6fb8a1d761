"""The README's experiment runs as printed, and its map names what is there. All else of it: tests/test_docs.py."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.file_index import FOLDERS, PAGE, files, first_line, page
from training.cli import load_experiment
from training.loop import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.thorough
def test_the_experiment_of_ones_own_trains_as_printed(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "my_own.py"
    file.write_text(code)
    experiment = load_experiment(str(file))
    summary = train(replace(experiment, steps=2, batch_size=8), tmp_path / "run")
    assert summary["steps"] == 2


def test_every_file_and_folder_of_the_map_is_there():
    rows = re.findall(r"^\| `([\w/]+)/` \| [^|]+ \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) > 5
    for folder, begin in rows:
        assert (ROOT / folder).is_dir(), folder
        for name in re.findall(r"`(\w+\.py)`", begin):
            assert (ROOT / folder / name).is_file(), f"{folder}/{name}"


def test_the_page_of_all_files_is_what_they_say():
    assert all(first_line(path) for folder in FOLDERS for path in files(folder))
    assert PAGE.read_text() == page(), "python -m tests.file_index writes it anew"


def test_every_folder_of_a_package_stands_on_it():
    inside = {path.parent for package in FOLDERS for path in (ROOT / package).rglob("*.py")}
    assert {folder.relative_to(ROOT).as_posix() for folder in inside} == set(FOLDERS)
