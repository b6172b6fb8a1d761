"""Reproduce a paper's figure or table: `python reproduce.py ddim_table1 --scale small`."""

import argparse
import ast
import csv
import time
from datetime import date
from pathlib import Path

from training.errors import UserError, run

USAGE = """Trains what is missing, measures, and writes figures/NAME.png and figures/NAME.csv.

tiny runs in minutes on a laptop, small in about an hour on two CPU cores, paper has the paper's data and settings and
wants a GPU. A run that is at hand is named by --run; otherwise one is trained in runs/ and kept.
"""


def listing(names: list[str]) -> str:
    folder = Path(__file__).resolve().parent / "reproductions"
    lines = []
    for name in names:
        doc = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text())) or ""
        lines.append(f"  {name.ljust(max(map(len, names)))}  {doc.partition(chr(10))[0]}")
    return "\n".join(lines)


def main() -> None:
    from reproductions.reproduction import in_table, load, made, names, trained
    from training.config import nearest

    parser = argparse.ArgumentParser(
        prog="python reproduce.py",
        description=USAGE,
        epilog="NAME is one of:\n" + listing(names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), default="tiny")
    parser.add_argument("--run", type=Path, help="a finished run of the scale's experiment, to be measured as it is")
    parser.add_argument("--data", default="", help="a text file, for those that read text")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the pictures and the table")
    options = parser.parse_args()
    if options.list:
        print(listing(names()))
        return
    if options.name is None:
        parser.print_help()
        return
    if options.name not in names():
        raise UserError(f"there is no reproduction {options.name!r}{nearest(options.name, names())}")

    from training.picture import save_frames
    from training.startup import start

    start()
    module = load(options.name)
    if options.scale not in module.SCALES:
        raise UserError(f"{options.name} has the scales {', '.join(module.SCALES)}, not {options.scale}")
    began = time.perf_counter()
    wanted = module.SCALES[options.scale]
    ready = None
    if wanted is None and options.run:
        raise UserError(f"{options.name} takes no --run: its densities are exact, or it makes several runs of its own")
    if wanted is not None:
        ready = trained(options.run or made(wanted))
        print(f"run of {wanted}, step {ready.step}")
    if options.data and not getattr(module, "TAKES_DATA", False):
        raise UserError(f"{options.name} reads no text: it takes no --data")
    own = {"data": options.data} if options.data else {}
    rows = []
    for row in module.rows(options.scale, ready, **own):
        rows.append(row)
        print("  ".join(f"{key} {show(value)}" for key, value in in_table(row).items()), flush=True)
    write(module, rows, options.out, options.name)
    if hasattr(module, "animation"):
        save_frames(module.animation(rows), options.out / f"{options.name}.gif")
    for line in module.summary(rows) if hasattr(module, "summary") else ():
        print(line)
    seconds = time.perf_counter() - began
    print(f"wrote {options.out / options.name}.png and .csv in {seconds:.0f} s")
    print(f"scale {options.scale}, {device()}, {date.today()}")


def show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def device() -> str:
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


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
