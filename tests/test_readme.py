"""The README's code runs as printed, and what it names is there."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from training.cli import experiment_names, load_experiment, parse, take
from training.fit import take_wishes
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


def test_the_commands_settings_exist():
    commands = re.findall(r"python train\.py (\w+) (--[^#\n`]*)", README)
    assert len(commands) >= 2
    for name, arguments in commands:
        flags = [a for a in shlex.split(arguments) if a not in ("--help",)]
        for flag in ("--workdir", "--profile", "--sweep", "--at-once"):
            take(flags, flag, has_value=True)
        take_wishes(flags)
        preset = take(flags, "--preset", has_value=True)
        parse(load_experiment(name, preset=preset), flags, "train.py")


def test_every_file_and_folder_named_is_there():
    for folder, files in re.findall(r"^\| `([\w/]+)/` \| [^|]+ \| (.*) \|$", README, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
        for name in re.findall(r"`(\w+\.py)`", files):
            assert (ROOT / folder / name).is_file(), f"{folder}/{name}"
    for path in re.findall(r"`(\w+/\w+\.\w+)`", README) + re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).is_file() or path.startswith(("runs/",)), path
    listed = re.search(r"^\| `experiments/` .*$", README, re.MULTILINE)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[0])) == set(experiment_names())
