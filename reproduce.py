"""Reproduce papers' figures and tables: `python reproduce.py ddim_table1 --scale small`, or all of them: `--all`."""

import argparse
import ast
import csv
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from training.errors import Stopped, UserError, run

USAGE = """Trains what is missing, measures, and writes figures/NAME.png, figures/NAME.csv and figures/index.html, which
is the page of all figures that are there.

tiny is every figure from trainings cut short, small what README and docs show, in minutes to hours. Some have mnist,
where small is of digits, and paper, with the paper's data and settings, which wants a GPU. A run that is at hand is
named by --run; otherwise one is trained in runs/ and kept.

--all goes through all names, and on where it was killed; a figure that fails is told on the page, and does not stop the
others.
"""


def listing(names: list[str]) -> str:
    return "\n".join(f"  {name.ljust(max(map(len, names)))}  {title(name)}" for name in names)


def title(name: str) -> str:
    """The first line of the module's docstring."""
    path = Path(__file__).resolve().parent / "reproductions" / f"{name}.py"
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def main() -> None:
    from reproductions.reproduction import load, names
    from training.config import nearest

    parser = argparse.ArgumentParser(
        prog="python reproduce.py",
        description=USAGE,
        epilog="NAME is one of:\n" + listing(names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="every figure that the scale has, and the page of them")
    parser.add_argument("--again", action="store_true", help="with --all: those that are made already, too")
    parser.add_argument(
        "--at-once",
        type=int,
        help="with --all: so many at a time; by default 2 of tiny on CPUs, and else 1",
    )
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--scale", default="tiny", help="tiny, small, paper, or another that the module has")
    parser.add_argument("--run", type=Path, help="a finished run, measured in the place of the scale's own")
    parser.add_argument("--data", default="", help="a text file, for those that read text")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of pictures, tables and the page")
    options = parser.parse_args()
    if options.list:
        print(listing(names()))
        return
    if options.name is None and not options.all:
        parser.print_help()
        return
    if options.name and options.all:
        raise UserError("either a NAME or --all")
    if options.name and options.name not in names():
        raise UserError(f"there is no reproduction {options.name!r}{nearest(options.name, names())}")

    from training.startup import start

    if options.at_once is not None and (options.at_once < 1 or not options.all):
        raise UserError("--at-once goes with --all, and is at least 1")
    start()
    if options.all:
        if options.run:
            raise UserError("--all takes no --run: each figure has runs of its own")
        everything(options.scale, options.data, options.out, options.again, options.at_once)
        return
    name = str(options.name)
    module = load(name)
    if options.scale not in module.SCALES:
        raise UserError(f"{name} has the scales {', '.join(module.SCALES)}, not {options.scale}")
    if options.data and not getattr(module, "TAKES_DATA", False):
        raise UserError(f"{name} reads no text: it takes no --data")
    one(name, options.scale, options.run, options.data, options.out)
    page(options.out)


def everything(scale: str, data: str, out: Path, again: bool, at_once: int | None) -> None:
    """All figures that have the scale; exits with 1 where one could not be made."""
    import jax

    from reproductions import record
    from reproductions.reproduction import load, names
    from training.errors import exit_with

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
    page(out)
    if at_once > 1:
        print(f"{len(left)} figures, {at_once} at a time; what each says is in {out}/NAME.log", flush=True)
    failed, number = [], (f"{i} of {len(left)}" for i in range(1, len(left) + 1))
    for last in (False, True):
        some = [name for name in left if getattr(load(name), "LAST", False) == last]
        how = (some, number, scale, own, out)
        for name, began, error in side_by_side(*how, at_once) if at_once > 1 else in_turn(*how):
            if error:
                failed.append(name)
                entry(name, scale, None, own[name], began, error=error).write(out, name)
            page(out)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} figures are in {out / 'index.html'}")
    if failed:
        exit_with(f"not made: {', '.join(failed)}", 1)


Made = Iterator[tuple[str, tuple[float, float], str]]  # name, when it began, and what went wrong


def in_turn(names: list[str], number: Iterator[str], scale: str, data: dict[str, str], out: Path) -> Made:
    """One after another, in this process."""
    import jax

    for name in names:
        print(f"== {name}, {next(number)}", flush=True)
        began, wrong = (time.perf_counter(), time.process_time()), ""
        try:
            one(name, scale, None, data[name], out)
        except Exception as error:
            if isinstance(error, BrokenPipeError) or (isinstance(error, Stopped) and error.code != 1):
                raise  # a signal is for all of them
            traceback.print_exc()
            wrong = told(error)
        yield name, began, wrong
        jax.clear_caches()  # programs of one figure are of no use to the next, or lie in the cache on the disk


def side_by_side(
    names: list[str], number: Iterator[str], scale: str, data: dict[str, str], out: Path, at_once: int
) -> Made:
    """So many at a time, each in a process of its own; what it says is in NAME.log beside its figure."""
    from reproductions.processes import ended

    def command(name: str) -> list[str]:
        words = [sys.executable, str(Path(__file__).resolve()), name, "--scale", scale, "--out", str(out)]
        return [*words, "--data", data[name]] if data[name] else words

    out.mkdir(parents=True, exist_ok=True)
    for figure in ended(names, at_once, command, out):
        last = figure.said[-1] if figure.said else f"exit status {figure.code}"
        ours = last if figure.code else next((line for line in figure.said if line.startswith("ours: ")), last)
        print(f"== {figure.name}, {next(number)}, {time.perf_counter() - figure.began:.0f} s: {ours}", flush=True)
        yield figure.name, (figure.began, time.process_time()), last.removeprefix("error: ") if figure.code else ""


def told(error: Exception) -> str:
    """The first line of it, and its kind where it is none of ours."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return line if isinstance(error, (UserError, Stopped)) else f"{type(error).__name__}: {line}"


def one(name: str, scale: str, of_run: Path | None, data: str, out: Path) -> None:
    """Measures, and writes table, picture and record."""
    from reproductions.reproduction import in_table, load
    from reproductions.runs import run_of
    from training.handover import finished
    from training.picture import save_frames
    from training.trained import trained

    module = load(name)
    began = time.perf_counter(), time.process_time()
    wanted, ready = module.SCALES[scale], None
    if wanted is None and of_run:
        raise UserError(f"{name} takes no --run: its densities are exact, or it makes several runs of its own")
    if wanted is not None:
        if of_run:
            finished("--run", str(of_run))
        ready = trained(of_run or run_of(wanted))
        print(f"run of {wanted}, step {ready.step}")
    rows = []
    for row in module.rows(scale, ready, **({"data": data} if data else {})):
        rows.append(row)
        print("  ".join(f"{key} {show(value)}" for key, value in in_table(row).items()), flush=True)
    write(module, rows, out, name)
    if hasattr(module, "animation"):
        save_frames(module.animation(rows), out / f"{name}.gif")
    for line in module.summary(rows) if hasattr(module, "summary") else ():
        print(line)
    made = entry(name, scale, of_run, data, began, headline=module.headline(rows))
    made.write(out, name)
    print(f"ours: {made.headline}")
    print(f"wrote {out / name}.png and .csv in {made.seconds:.0f} s")
    print(f"scale {scale}, {made.hardware}, {made.date}")


def entry(name: str, scale: str, of_run: Path | None, data: str, began: tuple[float, float], **told: str) -> Any:
    """The record of what has been made since `began`, in seconds of the clock and of the processor."""
    from reproductions.record import Record, hardware, settings_of
    from reproductions.reproduction import load

    run = str(of_run or "")
    arguments = f" --run {run}" * bool(run) + f" --data {data}" * bool(data)
    return Record(
        scale=scale,
        settings=settings_of(load(name), scale, run, data),
        command=f"python reproduce.py {name} --scale {scale}{arguments}",
        seconds=round(time.perf_counter() - began[0], 1),
        cpu_seconds=round(time.process_time() - began[1], 1),
        hardware=hardware(),
        date=str(date.today()),
        **told,
    )


def page(out: Path) -> None:
    """Writes the page of all figures."""
    from reproductions.page import Entry, write_page
    from reproductions.reproduction import load, names

    write_page(out, [Entry(name, title(name), load(name).SOURCE) for name in names()])


def show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(module, rows: list[dict], folder: Path, name: str) -> None:  # pyright: ignore[reportMissingParameterType]
    """The table and the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from reproductions.reproduction import in_table

    folder.mkdir(parents=True, exist_ok=True)
    table = [in_table(row) for row in rows]
    columns = list(dict.fromkeys(key for row in table for key in row))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table)
    figure = Figure(figsize=getattr(module, "SIZE", (10, 4.4)), dpi=110, layout="constrained")
    module.draw(rows, figure)
    FigureCanvasAgg(figure).print_png(folder / f"{name}.png")


if __name__ == "__main__":
    run(main)
