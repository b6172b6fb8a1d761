"""One figure: measured, drawn, and written with its table, its record and the page of all."""

import csv
import time
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reproductions import reproduction
from reproductions.page import Entry, write_page
from reproductions.record import Record, hardware, settings_of
from reproductions.reproduction import Row, in_table
from reproductions.runs import run_of
from training.errors import UserError
from training.handover import finished
from training.picture import save_frames
from training.trained import trained


def one(name: str, scale: str, of_run: Path | None, data: str, out: Path) -> None:
    """Measures, and writes table, picture and record."""
    module = reproduction.load(name)
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
    write_figure(module, rows, out, name)
    if hasattr(module, "animation"):
        save_frames(module.animation(rows), out / f"{name}.gif")
    for line in module.summary(rows) if hasattr(module, "summary") else ():
        print(line)
    made = record_of(name, scale, of_run, data, began, headline=module.headline(rows))
    made.write(out, name)
    print(f"ours: {made.headline}")
    print(f"wrote {out / name}.png and .csv in {made.seconds:.0f} s")
    print(f"scale {scale}, {made.hardware}, {made.date}")


def record_of(name: str, scale: str, of_run: Path | None, data: str, began: tuple[float, float], **told: str) -> Record:
    """The record of what has been made since `began`, in seconds of the clock and of the processor."""
    run = str(of_run or "")
    arguments = f" --run {run}" * bool(run) + f" --data {data}" * bool(data)
    return Record(
        scale=scale,
        settings=settings_of(reproduction.load(name), scale, run, data),
        command=f"python reproduce.py {name} --scale {scale}{arguments}",
        seconds=round(time.perf_counter() - began[0], 1),
        cpu_seconds=round(time.process_time() - began[1], 1),
        hardware=hardware(),
        date=str(date.today()),
        **told,
    )


def write_page_of_all(out: Path) -> None:
    """Writes the page of all figures."""
    write_page(
        out, [Entry(name, reproduction.title(name), reproduction.load(name).SOURCE) for name in reproduction.names()]
    )


def write_figure(module: Any, rows: list[Row], folder: Path, name: str) -> None:
    """The table and the picture."""
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


def show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
