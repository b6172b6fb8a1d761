"""README and docs/: links lead somewhere, commands parse, code runs as printed, pictures are shown, the tour runs."""

import ast
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

import evaluate
import sample
from reproductions import reproduction
from reproductions.densities import FOLDER, densities
from samplers import check, own
from samplers.catalogue import solvers
from tests.conftest import tiers
from tests.file_index import PAGE
from tests.scripts import ENVIRONMENT
from training import cli, config
from training.cli import load_experiment, parse, take, take_cluster, take_mesh, take_number
from training.errors import UserError
from training.experiment import Experiment
from training.fit import take_wishes
from training.sweep import arguments as as_arguments

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TOUR = DOCS / "tour.ipynb"
# Not docs/files.md, which is written from docstrings: tests/test_readme.py.
FILES = (ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path != PAGE))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
RUN_ELSEWHERE = ("README.md", "docs/your_own_sampler.md")  # tests/test_readme.py, tests/test_check.py
LARGEST = 10**6  # bytes of a picture

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[(?:[^][]|\[[^][]*\])*\]\(([^()\s]+)\)")
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(PAGES[page]) if kind == language]


def prose(page: str) -> str:
    return FENCE.sub("", PAGES[page])


# Links, paths and pictures


def targets(page: str) -> list[str]:
    if page.endswith(".ipynb"):
        cells = json.loads((ROOT / page).read_text())["cells"]
        return [t for cell in cells if cell["cell_type"] == "markdown" for t in LINK.findall("".join(cell["source"]))]
    return LINK.findall(INLINE.sub("", prose(page)))


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *#*$", FENCE.sub("", path.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("page", [*PAGES, TOUR.relative_to(ROOT).as_posix()])
def test_every_link_leads_somewhere(page):
    wrong = []
    for target in targets(page):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            wrong.append(target)
    assert not wrong


@every_page
def test_every_path_in_backquotes_is_there(page):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    wrong = []
    for name in INLINE.findall(prose(page)):
        path = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)*/?)(?::\w+)?", name)
        is_named = path and (path[1].split("/")[0] in folders - {"runs", "figures"} or path[1].endswith(".py"))
        if is_named and "/" in path[1] and not (ROOT / path[1]).exists():
            wrong.append(name)
    assert not wrong


@every_page
def test_every_name_beside_a_file_is_in_it(page):
    wrong = []
    for path, names in re.findall(r"`(\w+/[\w/]+\.py)`((?:[,;] `[\w.]+`)+)", prose(page)):
        text = (ROOT / path).read_text()
        parts = [part for name in INLINE.findall(names) for part in name.split(".")]
        wrong += [(path, part) for part in parts if not re.search(rf"\b{part}\b", text)]
    assert not wrong


def test_every_picture_is_shown_and_none_is_large():
    linked = {((ROOT / page).parent / target).resolve() for page in PAGES for target in targets(page)}
    pictures = [*DOCS.glob("*.png"), *DOCS.glob("*.gif")]
    assert not [path.name for path in pictures if path.resolve() not in linked]
    assert not [path.name for path in pictures if path.stat().st_size > LARGEST]


# Commands

SCRIPT = r"(?:train|sample|evaluate|reproduce)\.py"
COMMAND = re.compile(rf"(?:\.venv/bin/)?python3? +(.+)|((?:{SCRIPT}) .+)|(make \w+.*)|(pip install .+)")


@dataclass(frozen=True)
class Command:
    """The words after `python`, or from `make` or `pip` on, and the line of the page that they are on."""

    words: tuple[str, ...]
    line: int


def code(page: str) -> Iterator[tuple[int, str]]:
    """Where each line of the shell blocks begins, and what stands in backquotes; with the code itself."""
    text = PAGES[page]
    for block in FENCE.finditer(text):
        if block[1] == "sh":
            for line in re.finditer(r"(?:[^\\\n]|\\\n|\\.)+", block[2]):
                yield block.start(2) + line.start(), re.sub(r"(^|\s)#.*", "", re.sub(r"\\\n\s*", "", line[0]))
    for found in INLINE.finditer(FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)):
        yield found.start(1), " ".join(found[1].split())  # a line may have been broken within


@functools.cache
def commands(page: str) -> list[Command]:
    found = []
    for start, line in code(page):
        for part in re.split(r" && | \| |; ", line):
            command = COMMAND.search(part.partition("…")[0].partition(" ...")[0])
            if command is not None:
                text = next(filter(None, command.groups()))
                # A command within another's quotes has a quote behind its end.
                words = shlex.split(text if text.count('"') % 2 == 0 else text.rstrip().removesuffix('"'))
                found.append(Command(tuple(words), PAGES[page].count("\n", 0, start) + 1))
    return found


def is_placeholder(word: str) -> bool:
    return word.isupper()


@functools.cache
def own_experiment(page: str) -> types.ModuleType:
    """What an experiment's file is, of which a page shows the whole: all its blocks up to `experiment =`."""
    code = blocks(page, "python")
    last = next((i for i, block in enumerate(code) if re.search(r"^experiment = ", block, re.MULTILINE)), None)
    assert last is not None, f"{page} shows no experiment of one's own"
    module = types.ModuleType(f"own_experiment_{Path(page).stem}")
    sys.modules[module.__name__] = module
    exec(compile("\n\n".join(code[: last + 1]), page, "exec"), module.__dict__)
    return module


def experiment_of(page: str, name: str, tiny: bool, preset: str | None) -> Experiment:
    if is_placeholder(name):
        name = "digits_ddpm"
    if not name.endswith(".py"):
        return load_experiment(name, tiny, preset)
    module = own_experiment(page)
    return module.tiny if tiny else module.experiment


def taken(words: tuple[str, ...]) -> tuple[str, str, bool, str | None, list[str]]:
    """Of a `train.py` command the run's folder, the experiment's name, its form, and what is left for the settings."""
    name, *left = words
    tiny, folder = bool(take(left, "--tiny")), take(left, "--workdir", has_value=True)
    preset = take(left, "--preset", has_value=True)
    form = "_tiny" if tiny else f"_{preset}" if preset else ""
    return (folder or f"runs/{Path(name).stem}{form}").rstrip("/"), name, tiny, preset, left


@functools.cache
def trained(page: str, words: tuple[str, ...]) -> Experiment:
    """The experiment of a `train.py` command, read as the script does."""
    _, name, tiny, preset, left = taken(words)
    for flag in ("--restart", "--help"):
        take(left, flag)
    for flag in ("--profile", "--sweep", "--at-once"):
        take(left, flag, has_value=True)
    take_number(left, "--replay")
    take_cluster(left)
    take_wishes(left)
    experiment = experiment_of(page, name, tiny, preset)
    return parse(experiment, left, "train.py") if left else experiment


@functools.cache
def runs() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every folder that a command on some page trains a run in, with the page and the command."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for page in PAGES:
        for command in commands(page):
            script, *words = command.words
            if script == "train.py" and words and not words[0].startswith("-"):
                found.setdefault(taken(tuple(words))[0], (page, tuple(words)))
    return found


def run(page: str, folder: str) -> Experiment:
    """The experiment of a run that is drawn from or measured."""
    folder = folder.rstrip("/")
    if is_placeholder(folder):
        return load_experiment("digits_ddpm")
    if folder in runs():
        return trained(*runs()[folder])
    if folder.startswith(f"{FOLDER.as_posix()}/"):  # of the table of likelihoods
        return next(row.experiment for row in densities(Path(folder).parent.name) if row.folder.as_posix() == folder)
    name = folder.removeprefix("runs/")
    assert folder.startswith("runs/"), f"no command on any page makes {folder}"
    if name in cli.experiment_names():
        return load_experiment(name)
    return load_experiment(name.removesuffix("_tiny"), tiny=True)


def check_train(page: str, words: list[str]) -> None:
    if words and not words[0].startswith("-"):
        trained(page, tuple(words))
    else:
        assert words in ([], ["--list"], ["--help"], ["-h"]), words


def check_sample(page: str, words: list[str]) -> None:
    if words in (["--list-samplers"], ["--help"], []):
        return
    default = run(page, words.pop(0)).sampler
    take_cluster(words)
    take(words, "--experiment", has_value=True)
    take(words, "--help")
    name = sample.sampler_of_ones_own(words)
    if name is not None:
        words = [word for word in words if not word.startswith("--sampler.")]
        assert hasattr(default, "solver")
    default = sample.exchanged(default, words)
    take_mesh(words, load_experiment("digits_ddpm").mesh)
    if words:
        sample.rebuilt(default, parse(sample.options(default), words, "sample.py"))


def check_evaluate(page: str, words: list[str]) -> None:
    if words in (["--list"], ["--help"], []):
        return
    if words[0].startswith("-"):
        return flags_are_in(ROOT / "evaluate.py", words)
    experiment = run(page, words.pop(0))
    take_cluster(words)
    for flag in ("--experiment", "--features"):
        take(words, flag, has_value=True)
    take(words, "--help")
    take_mesh(words, experiment.mesh)
    if words and not is_placeholder(words[0]):
        metric = evaluate.metric_by_name(words.pop(0), experiment.metrics)
        if words:
            parse(metric, words, "evaluate.py")


def check_reproduce(page: str, words: list[str]) -> None:
    del page
    flags_are_in(ROOT / "reproduce.py", words)
    if words and not words[0].startswith("-") and not is_placeholder(words[0]):
        assert words[0] in reproduction.names(), words[0]
        module = reproduction.load(words[0])
        scale = take(words, "--scale", has_value=True) or "tiny"
        assert scale in module.SCALES, f"it has the scales {', '.join(module.SCALES)}"
        assert "--data" not in words or getattr(module, "TAKES_DATA", False), "it reads no text"


def flags_are_in(file: Path, words: list[str]) -> None:
    missing = [word for word in words if word.startswith("--") and word.partition("=")[0] not in file.read_text()]
    assert not missing, f"{file.name} has no {missing}"


def check_module(words: list[str]) -> None:
    """`python -m …`."""
    name, *rest = words
    if name == "pytest":
        for word in rest:
            if word.startswith("tests/"):
                assert (ROOT / word.partition("::")[0]).exists(), word
        if "-k" in rest:
            file = next((ROOT / word for word in rest if word.endswith(".py")), None)
            wanted = [w for w in re.findall(r"\w+", rest[rest.index("-k") + 1]) if w not in ("and", "or", "not")]
            assert file is None or all(word in file.read_text() for word in wanted), rest
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    assert spec.origin is not None, name
    if name == "samplers.check":
        solver = rest[0]
        assert own.is_own(solver) or solver in solvers() or solver.startswith("-"), solver
        assert "--path" not in rest or rest[rest.index("--path") + 1] in check.PATHS, rest
        rest = [word for word in rest if word in ("--path", "--plot", "--order")]  # others are the solver's
    flags_are_in(Path(spec.origin), rest)


CHECKS: dict[str, Callable[[str, list[str]], None]] = {
    "train.py": check_train,
    "sample.py": check_sample,
    "evaluate.py": check_evaluate,
    "reproduce.py": check_reproduce,
}


def check_command(page: str, command: Command) -> None:
    head, *words = command.words
    if head in CHECKS:
        CHECKS[head](page, words)
    elif head == "-m":
        check_module(words)
    elif head == "make":
        targets = [word for word in words if "=" not in word]
        assert all(re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for word in targets), words
    elif head == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
            assert set(word.split(",")) <= set(extras), word
    elif head.endswith(".py") and "/" in head:
        assert (ROOT / head).is_file(), head
        flags_are_in(ROOT / head, words)


def test_what_is_tested_is_found():
    """A pattern that matches nothing would pass on every page."""
    assert sum(len(commands(page)) for page in PAGES) > 250
    assert sum(len(targets(page)) for page in PAGES) > 105
    assert sum(len(INLINE.findall(prose(page))) for page in PAGES) > 930


@every_page
def test_every_command_is_one(page):
    wrong = []
    for command in commands(page):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                check_command(page, command)
        except (AssertionError, UserError, ValueError, SystemExit) as error:
            text = re.sub(r"[─│╭╮╰╯]+", " ", said.getvalue()) or str(error).partition("\nassert")[0]
            wrong.append(f"{page}:{command.line}: {shlex.join(command.words)}: {' '.join(text.split())}")
    assert not wrong, "\n".join(wrong)


def sweeps(page: str) -> list[str]:
    return [code for code in blocks(page, "python") if re.search(r"^sweep = ", code, re.MULTILINE)]


@pytest.mark.parametrize("page", [page for page in PAGES if sweeps(page)])
def test_every_sweeps_settings_exist(page, monkeypatch):
    """Of each list that a page shows, for each experiment that it sweeps."""
    monkeypatch.setattr(config, "_of_user", {})
    names = {command.words[1] for command in commands(page) if "--sweep" in command.words}
    assert names
    for name in names:
        if name.endswith(".py"):
            config.register(own_experiment(page))
        experiment = experiment_of(page, name, tiny=False, preset=None)
        for code in sweeps(page):
            found: dict = {}
            exec(code, found)
            for element in found["sweep"]:
                parse(experiment, as_arguments(element), "train.py")


# Code


WITH_CODE = [page for page in PAGES if page not in RUN_ELSEWHERE and blocks(page, "python")]


@pytest.mark.parametrize("page", tiers(WITH_CODE, ("docs/nice.md", "docs/margins.md", "docs/rnn_and_bptt.md")))
def test_code_runs_as_printed(page, tmp_path, monkeypatch):
    """A page's blocks, one after another in one module."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"code_of_{Path(page).stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    strict = jax.config.jax_numpy_rank_promotion
    try:
        for found in re.finditer(r"^```python\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL):
            lines = PAGES[page].count("\n", 0, found.start(1))  # so that a traceback names the page's own line
            exec(compile("\n" * lines + found[1], page, "exec"), module.__dict__)
    finally:
        jax.config.update("jax_numpy_rank_promotion", strict)


# The notebook


@dataclass(frozen=True)
class Cell:
    number: int
    code: str


def tour() -> list[Cell]:
    cells = json.loads(TOUR.read_text())["cells"]
    return [Cell(i, "".join(cell["source"])) for i, cell in enumerate(cells) if cell["cell_type"] == "code"]


def test_the_tour_is_a_notebook_without_outputs():
    notebook = json.loads(TOUR.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            ast.parse("".join(cell["source"]))  # no magics


IN_A_HURRY = {
    "TOUR_STEPS": "2",
    "MPLBACKEND": "Agg",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", ""),
}


@pytest.mark.thorough
def test_the_tour_runs(tmp_path):
    """Its cells one after another in a process of their own, on one device as a reader's, with a few steps each."""
    script = "\n".join(f"exec(compile({cell.code!r}, 'cell {cell.number}', 'exec'))" for cell in tour())
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**ENVIRONMENT, **IN_A_HURRY},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bits/dim of 360 held-out digits" in done.stdout
