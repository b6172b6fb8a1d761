"""All figures of a scale: in turn or several at a time, those that are made already left out, errors on their page."""

import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax

from reproductions import record, reproduction
from reproductions.making import one, record_of, write_page_of_all
from reproductions.processes import ended
from training.errors import Stopped, UserError, exit_with, first_line

SCRIPT = Path(__file__).resolve().parent.parent / "reproduce.py"


def everything(scale: str, data: str, out: Path, again: bool, at_once: int | None) -> None:
    """All figures that have the scale; exits with 1 where one could not be made."""
    load, names = reproduction.load, reproduction.names
    chosen = [name for name in names() if scale in load(name).SCALES]
    if not chosen:
        raise UserError(f"no figure has the scale {scale}")
    own = {name: data if getattr(load(name), "TAKES_DATA", False) else "" for name in chosen}
    left = []
    for name in chosen:
        found, settings = record.read(out, name), record.settings_of(load(name), scale, data=own[name])
        if found and not again and not found.error and found.settings == settings:
            print(f"== {name}: made on {found.date}", flush=True)
        else:
            left.append(name)
    if at_once is None:
        at_once = 2 if scale == "tiny" and jax.default_backend() == "cpu" else 1
    write_page_of_all(out)
    if at_once > 1:
        print(f"{len(left)} figures, {at_once} at a time; what each says is in {out}/NAME.log", flush=True)
    failed, number = [], (f"{i} of {len(left)}" for i in range(1, len(left) + 1))
    for last in (False, True):
        some = [name for name in left if getattr(load(name), "LAST", False) == last]
        how = (some, number, scale, own, out)
        for name, began, error in side_by_side(*how, at_once) if at_once > 1 else in_turn(*how):
            if error:
                failed.append(name)
                record_of(name, scale, None, own[name], began, error=error).write(out, name)
            write_page_of_all(out)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} figures are in {out / 'index.html'}")
    if failed:
        exit_with(f"not made: {', '.join(failed)}", 1)


Made = Iterator[tuple[str, tuple[float, float], str]]  # name, when it began, and what went wrong


def in_turn(names: list[str], number: Iterator[str], scale: str, data: dict[str, str], out: Path) -> Made:
    """One after another, in this process."""
    for name in names:
        print(f"== {name}, {next(number)}", flush=True)
        began, wrong = (time.perf_counter(), time.process_time()), ""
        try:
            one(name, scale, None, data[name], out)
        except Exception as error:
            if isinstance(error, BrokenPipeError) or (isinstance(error, Stopped) and error.code != 1):
                raise  # a signal is for all of them
            traceback.print_exc()
            ours = isinstance(error, UserError | Stopped)
            wrong = first_line(error) if ours else f"{type(error).__name__}: {first_line(error)}"
        yield name, began, wrong
        jax.clear_caches()  # programs of one figure are of no use to the next, or lie in the cache on the disk


def side_by_side(
    names: list[str], number: Iterator[str], scale: str, data: dict[str, str], out: Path, at_once: int
) -> Made:
    """So many at a time, each in a process of its own; what it says is in NAME.log beside its figure."""

    def command(name: str) -> list[str]:
        words = [sys.executable, str(SCRIPT), name, "--scale", scale, "--out", str(out)]
        return [*words, "--data", data[name]] if data[name] else words

    out.mkdir(parents=True, exist_ok=True)
    for figure in ended(names, at_once, command, out):
        last = figure.said[-1] if figure.said else f"exit status {figure.code}"
        ours = last if figure.code else next((line for line in figure.said if line.startswith("ours: ")), last)
        print(f"== {figure.name}, {next(number)}, {time.perf_counter() - figure.began:.0f} s: {ours}", flush=True)
        yield figure.name, (figure.began, time.process_time()), last.removeprefix("error: ") if figure.code else ""
