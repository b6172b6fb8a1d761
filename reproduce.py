"""Reproduce papers' figures and tables: `python reproduce.py ddim_table1 --scale small`, or all of them: `--all`."""

import argparse
from pathlib import Path

from training.errors import UserError, run

USAGE = """Trains what is missing, measures, and writes figures/NAME.png, figures/NAME.csv and figures/index.html, which
is the page of all figures that are there.

tiny is every figure from trainings cut short, small what README and docs show, in minutes to hours. Some have mnist,
where small is of digits, and paper, with the paper's data and settings, which wants a GPU. A run that is at hand is
named by --run; otherwise one is trained in runs/ and kept.

--all goes through all names, and on where it was killed; a figure that fails is told on the page, and does not stop the
others.
"""


def listing(names: list[str]) -> str:
    from reproductions.reproduction import title

    return "\n".join(f"  {name.ljust(max(map(len, names)))}  {title(name)}" for name in names)


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

    from reproductions.all_figures import everything
    from reproductions.making import one, write_page_of_all
    from training.startup import start

    if options.again and not options.all:
        raise UserError("--again goes with --all")
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
    write_page_of_all(options.out)


if __name__ == "__main__":
    run(main)
