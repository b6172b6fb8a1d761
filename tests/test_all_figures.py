"""reproduce.py --all and its page, by modules that stand in for the real ones: nothing is trained."""

import html.parser
import json
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest

from reproductions import page, record, reproduction
from reproductions.processes import ended
from reproductions.reproduction import Source
from tests.scripts import here
from training.errors import Stopped
from training.lock import BUSY

VOID = {"img", "meta"}
RECORD = record.Record(
    scale="tiny",
    settings="0",
    command="python reproduce.py one",
    seconds=125.0,
    cpu_seconds=7300.0,
    hardware="2 CPU cores",
    date="2026-11-30",
    headline="a < b",
)


def module(name, *, error=None, **constants):
    """A reproduction of one row, which counts how often it was measured."""
    made = ModuleType(name)
    made.SCALES, made.CALLS = {"tiny": None, "small": None}, {}  # type: ignore[attr-defined]
    made.SOURCE = Source(paper="A & B <C>", arxiv="2010.02502, 1410.8516", equation="eq. 1 < 2", number="7 > 6")  # type: ignore[attr-defined]
    made.measured = []  # type: ignore[attr-defined]

    def rows(scale, trained, **data):
        made.measured.append((scale, data))
        if error:
            raise error
        yield {"what": "<i>", "value": 1.23456789, "count": 12345}

    made.rows = rows  # type: ignore[attr-defined]
    made.draw = lambda rows, figure: figure.subplots().plot([0.0, rows[0]["value"]])  # type: ignore[attr-defined]
    made.headline = lambda rows: f"{rows[0]['value']:.2f} < 2"  # type: ignore[attr-defined]
    for constant, value in constants.items():
        setattr(made, constant, value)
    return made


@pytest.fixture
def stubs(monkeypatch):
    found = {name: module(name) for name in ("one", "two")}
    monkeypatch.setattr(reproduction, "names", lambda: sorted(found))
    monkeypatch.setattr(reproduction, "load", found.__getitem__)
    monkeypatch.setattr(reproduction, "title", lambda name: f"What {name} <shows>.")
    return found


def count(stubs):
    return {name: len(stub.measured) for name, stub in stubs.items()}


class Tags(html.parser.HTMLParser):
    """What is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [value for name in ("href", "src") if (value := found.get(name))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(folder):
    tags = Tags()
    tags.feed((folder / "index.html").read_text())
    assert tags.open == []
    return tags


def test_all_are_drawn_and_stand_on_one_page(stubs, tmp_path):
    code, out, _ = here("reproduce.py", "--all", "--at-once", "1", "--out", tmp_path)
    assert code == 0
    assert "2 of 2 figures are in" in out
    tags = parsed(tmp_path)
    assert tags.ids == ["one", "two"]
    for link in tags.links:
        assert link.startswith(("#", "https://arxiv.org/abs/")) or (tmp_path / link).is_file()
    assert "https://arxiv.org/abs/1410.8516" in tags.links
    for shown in ("What one <shows>", "A & B <C>", "eq. 1 < 2", "1.23 < 2", "7 > 6", "<i>", "1.235", "12345"):
        assert shown in tags.text
    assert "python reproduce.py two --scale tiny" in tags.text
    assert record.hardware() in tags.text
    assert (tmp_path / "one.png").is_file()


def test_what_is_made_is_not_made_again(stubs, tmp_path):
    everything = ("reproduce.py", "--all", "--at-once", "1", "--out", tmp_path)
    here(*everything)
    code, out, _ = here(*everything)
    assert (code, count(stubs)) == (0, {"one": 1, "two": 1})
    assert "== one: made on " in out
    stubs["two"].STEPS = 7  # another setting of the module
    here(*everything)
    assert count(stubs) == {"one": 1, "two": 2}
    (tmp_path / "one.json").write_text("{")  # as after a crash of the machine
    here(*everything)
    assert count(stubs) == {"one": 2, "two": 2}
    here(*everything, "--again")
    assert count(stubs) == {"one": 3, "two": 3}
    here(*everything, "--scale", "small")
    assert stubs["one"].measured[-1] == ("small", {})


def test_one_figure_is_always_measured_and_comes_to_the_page(stubs, tmp_path):
    here("reproduce.py", "one", "--out", tmp_path)
    code, _, _ = here("reproduce.py", "one", "--scale", "small", "--out", tmp_path)
    assert (code, count(stubs)) == (0, {"one": 2, "two": 0})
    text = parsed(tmp_path).text
    assert "1 of 2 figures, at scale small" in text
    assert "two: not made yet" in text


def test_one_that_fails_stops_no_other(stubs, tmp_path):
    stubs["one"] = module("one", error=ValueError("no <numbers>\nat all"))
    code, out, err = here("reproduce.py", "--all", "--at-once", "1", "--out", tmp_path)
    assert (code, count(stubs)) == (1, {"one": 1, "two": 1})
    assert "1 of 2 figures are in" in out
    assert err.endswith("error: not made: one\n")
    text = parsed(tmp_path).text
    assert "It could not be made: ValueError: no <numbers>" in text
    assert "one (failed)" in text
    stubs["one"].rows = lambda scale, trained: iter([{"value": 1.0}])  # mended
    code, _, _ = here("reproduce.py", "--all", "--at-once", "1", "--out", tmp_path)
    assert (code, count(stubs)["two"]) == (0, 1)
    assert "could not be made" not in parsed(tmp_path).text


def test_a_signal_is_for_all_of_them(stubs, tmp_path):
    stubs["one"] = module("one", error=Stopped("SIGTERM: saved step 3", 143))
    code, _, _ = here("reproduce.py", "--all", "--at-once", "1", "--out", tmp_path)
    assert (code, count(stubs)) == (143, {"one": 1, "two": 0})


def test_those_that_look_at_other_runs_come_last(stubs, tmp_path):
    stubs["one"].LAST = True
    _, out, _ = here("reproduce.py", "--all", "--at-once", "1", "--out", tmp_path)
    assert out.index("== two, 1 of 2") < out.index("== one, 2 of 2")


def test_a_text_is_for_those_that_read_it(stubs, tmp_path):
    stubs["one"].TAKES_DATA = True
    code, _, _ = here("reproduce.py", "--all", "--at-once", "1", "--data", "my.txt", "--out", tmp_path)
    assert code == 0
    assert stubs["one"].measured == [("tiny", {"data": "my.txt"})]
    assert stubs["two"].measured == [("tiny", {})]
    code, _, err = here("reproduce.py", "two", "--data", "my.txt", "--out", tmp_path)
    assert code == 2
    assert "two reads no text" in err


def test_settings_are_constants_and_no_addresses():
    def settings(**constants):
        return record.settings_of(module("one", **constants), "tiny")

    assert settings(STEPS=1, HOW=lambda x: x) == settings(STEPS=1, HOW=lambda x: x)
    assert settings(STEPS=1) != settings(STEPS=2)
    assert settings(STEPS=1) == settings(STEPS=1, SOURCE=None, helper=3)
    assert len({record.settings_of(module("one"), scale, data=data) for scale in "ab" for data in "cd"}) == 4


@pytest.mark.parametrize("broken", ["", "[]", "7", '{"scale": "tiny"}', json.dumps({"more": 1, **RECORD.__dict__})])
def test_a_record_of_another_form_is_none(tmp_path, broken):
    RECORD.write(tmp_path, "one")
    assert record.read(tmp_path, "one") == RECORD
    (tmp_path / "one.json").write_text(broken)
    assert record.read(tmp_path, "one") is None


def test_the_page_of_nothing_and_of_one_that_moves(tmp_path):
    entry = page.Entry("one", "One.", Source(paper="P", arxiv="", equation="eq. 1"))
    page.write_page(tmp_path, [entry])
    assert "None of 1 figures has been made." in parsed(tmp_path).text
    replace(RECORD, hardware="<x>").write(tmp_path, "one")
    for end in ("png", "gif"):
        (tmp_path / f"one.{end}").write_bytes(b"")
    page.write_page(tmp_path, [entry])
    tags = parsed(tmp_path)
    assert tags.links == ["#one", "one.png", "one.png", "one.gif", "one.gif"]
    assert "none to hold ours against" in tags.text
    assert "2 min (2.0 h of all cores), scale tiny, <x>, 2026-11-30" in tags.text


@pytest.mark.parametrize(("cell", "shown"), [("1.23456", "1.235"), ("-12345", "-12345"), ("1e-9", "1e-09"), ("σ̂", "σ̂")])
def test_numbers_are_shown_to_four_places(cell, shown):
    assert page.short(cell) == shown


def test_figures_at_once_wait_for_a_run_that_another_trains_and_stop_with_their_caller(tmp_path):
    first = tmp_path / "done"
    programs = {
        "first": f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(first)!r}).touch(); print('ours: 1')",
        "second": f"import sys, pathlib; pathlib.Path({str(first)!r}).exists() or sys.exit('runs/x {BUSY} process 7')",
        "third": "import sys; sys.exit('error: no such thing')",
    }
    command = lambda name: [sys.executable, "-c", programs[name]]  # noqa: E731
    found = {figure.name: figure for figure in ended(list(programs), 2, command, tmp_path)}
    assert {name: figure.code for name, figure in found.items()} == {"first": 0, "second": 0, "third": 1}
    assert found["first"].said == ["ours: 1"]
    assert found["third"].said == ["error: no such thing"]

    programs = {"quick": "pass", "long": f"import time; time.sleep(1.5); open({str(tmp_path / 'went on')!r}, 'w')"}
    going = ended(list(programs), 2, command, tmp_path)
    assert next(going).name == "quick"
    going.close()
    time.sleep(1.8)
    assert not (tmp_path / "went on").exists()
