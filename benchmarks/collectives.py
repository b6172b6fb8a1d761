"""What a compiled program communicates: its collective operations and their bytes, read from its own text.

An operation within a loop counts as often as the loop turns, where XLA knows how often that is. Bytes are those of the
whole result on one device (of a reduce-scatter, of its operands): what is handed over, not what a network's algorithm
makes of it, which for an all-reduce over n devices is 2(n − 1)/n of it sent by each.
"""

import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>\(.*?\)|\S+) (?P<name>[\w-]+)\(")
CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?(%?[\w.-]+(?:, ?%?[\w.-]+)*)\}?")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Communicated(NamedTuple):
    """Of one run of a program, by kind of operation."""

    count: Counter[str]
    bytes: Counter[str]


def communicated(text: str) -> Communicated:
    """Args: text, of `compiled.as_text()`."""
    bodies, entry = _computations(text)
    count: Counter[str] = Counter()
    moved: Counter[str] = Counter()

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            found = OPERATION.match(line)
            if not found:
                continue
            kind = found["name"].removesuffix("-start")
            if kind in KINDS:
                shape = found["shape"]
                count[kind] += times
                moved[kind] += times * (
                    _bytes(line.split(f"{found['name']}(", 1)[1].split(")")[0])
                    if kind == "reduce-scatter"
                    else _bytes(shape)
                )
                continue
            turns = TURNS.search(line) if found["name"] == "while" else None
            for names in CALLED.findall(line):
                for called in re.split(r",\s*", names):
                    walk(called.lstrip("%"), times * (int(turns[1]) if turns else 1))

    walk(entry, 1)
    return Communicated(count, moved)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{$", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _bytes(shape: str) -> int:
    total = 0
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        size = SIZES.get(kind, 4)
        for number in filter(None, sizes.split(",")):
            size *= int(number)
        total += size
    return total
