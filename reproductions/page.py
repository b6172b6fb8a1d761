"""The page of all figures, index.html: each with paper, equation, command, our number, the paper's, time and hardware.

It is made of what lies in the folder (NAME.json, .png, .gif and .csv) and of what the modules say of their sources, is
one file without scripts, and asks nothing of another host.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from reproductions.record import Record, read
from reproductions.reproduction import Source

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5b6570; --line: #d5dade; --back: #fff; --card: #f7f8f9;
  --link: #0b5cad; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e6e9; --soft: #9aa5b0; --line: #353c43; --back: #15181b;
  --card: #1d2125; --link: #7db8f0; --bad: #f2857d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 .2rem; }
a { color: var(--link); }
.soft { color: var(--soft); }
.bad { color: var(--bad); }
nav ul { columns: 15rem; padding-left: 1.2rem; margin: 1rem 0 2rem; }
nav li { break-inside: avoid; }
article { border: 1px solid var(--line); border-radius: .5rem; background: var(--card); padding: 1rem;
  margin: 0 0 1.5rem; }
article > p { margin: 0 0 .8rem; }
.shown { display: block; background: #fff; border-radius: .3rem; padding: .4rem; margin: 0 0 .8rem;
  text-align: center; }
img { max-width: 100%; height: auto; vertical-align: middle; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0 0 .6rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
code { font: .9em ui-monospace, monospace; white-space: pre; display: block; overflow-x: auto; line-height: 1.7; }
dd a { white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); }
.scrolls { overflow-x: auto; margin-top: .5rem; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; font-size: 10pt; } article { break-inside: avoid; border-color: #bbb; }
  details { display: none; } }
"""


@dataclass(frozen=True)
class Entry:
    """A figure that there is, made or not."""

    name: str
    title: str
    source: Source


def write_page(folder: Path, entries: list[Entry]) -> None:
    """index.html, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"index.html.{os.getpid()}"  # another figure may be coming to the page, too
    part.write_text(page(folder, entries))
    part.replace(folder / "index.html")


def page(folder: Path, entries: list[Entry]) -> str:
    records = {entry.name: record for entry in entries if (record := read(folder, entry.name))}
    made = [record for record in records.values() if not record.error]
    links = "".join(f"<li>{contents(entry, records.get(entry.name))}</li>" for entry in entries)
    cards = "".join(card(folder, entry, records[entry.name]) for entry in entries if entry.name in records)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Thalweg: figures of papers</title>\n<style>{STYLE}</style>\n"
        f"<h1>Figures of papers, made anew</h1>\n<p>{escape(about(made, len(entries)))}</p>\n"
        f'<nav aria-label="figures"><ul>{links}</ul></nav>\n{cards}</html>\n'
    )


def about(made: list[Record], all_of_them: int) -> str:
    """Of all figures together."""
    if not made:
        return f"None of {all_of_them} figures has been made."
    each = lambda values: ", ".join(dict.fromkeys(values))  # noqa: E731
    days = sorted({record.date for record in made})
    return (
        f"{len(made)} of {all_of_them} figures, at scale {each(record.scale for record in made)}, on "
        f"{each(record.hardware for record in made)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}; "
        f"{duration(sum(record.seconds for record in made))}, added up."
    )


def contents(entry: Entry, record: Record | None) -> str:
    if record is None:
        return f'<span class="soft">{escape(entry.name)}: not made yet</span>'
    failed = ' <span class="bad">(failed)</span>' if record.error else ""
    return f'<a href="#{escape(entry.name)}">{escape(entry.name)}</a>{failed}'


def card(folder: Path, entry: Entry, record: Record) -> str:
    name, source = escape(entry.name), entry.source
    facts = {"paper": escape(source.paper) + "".join(f", {link(one)}" for one in source.arxiv.split(", ") if one)}
    facts |= {"equation": escape(source.equation), "command": f"<code>{escape(record.command)}</code>"}
    if not record.error:
        facts["our number"] = f"<strong>{escape(record.headline)}</strong>"
    facts["the paper’s"] = escape(source.number) or '<span class="soft">none to hold ours against</span>'
    facts["made in"] = (
        f"{duration(record.seconds)} ({duration(record.cpu_seconds)} of all cores), scale {escape(record.scale)}, "
        f"{escape(record.hardware)}, {escape(record.date)}"
    )
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
    if record.error:
        body = f'<p class="bad">It could not be made: {escape(record.error)}</p>'
    else:
        body = "".join(pictures(folder, entry))
    head = f'<h2>{escape(entry.title.rstrip("."))}</h2>\n<p class="soft">{name}</p>\n'
    end = "" if record.error else table(folder / f"{entry.name}.csv")
    return f'<article id="{name}">{head}{body}<dl>{listed}</dl>{end}</article>\n'


def link(arxiv: str) -> str:
    return f'<a href="https://arxiv.org/abs/{escape(arxiv)}">arXiv {escape(arxiv)}</a>'


def pictures(folder: Path, entry: Entry) -> Iterator[str]:
    """Each leads to itself, as large as it is; the moving one comes last."""
    for end, alt in ((".png", entry.title), (".gif", f"{entry.title} Moving.")):
        if (folder / f"{entry.name}{end}").is_file():
            file = escape(f"{entry.name}{end}")
            yield f'<a class="shown" href="{file}"><img src="{file}" alt="{escape(alt)}" loading="lazy"></a>\n'


def table(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    cells = "".join("<tr>" + "".join(f"<td>{escape(short(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f"<details><summary>the table, {len(rows)} rows</summary>"
        f'<div class="scrolls"><table><tr>{heads}</tr>{cells}</table></div></details>'
    )


def short(cell: str) -> str:
    """A number to four places; whole ones and text as they are."""
    try:
        return cell if cell.lstrip("+-").isdecimal() else f"{float(cell):.4g}"
    except ValueError:
        return cell


def duration(seconds: float) -> str:
    minutes = seconds / 60.0
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100.0 else f"{minutes / 60.0:.1f} h"
