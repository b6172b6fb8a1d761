"""A sweep: the list `sweep` of a user's file, each element a dict of settings, and the table of what came of them.

training/trials.py trains them.
"""

import csv
import hashlib
import io
import re
import runpy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import UserError

LONGEST = 100  # characters of a run's name; file systems take 255 bytes
TPU_ALONE = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
Element = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: `finished`, `failed (exit status)`, `stopped` or `not started`, and its summary."""

    status: str = "not started"
    summary: dict[str, Any] | None = None


def load(file: str) -> list[Element]:
    """The list `sweep` of a Python file.

    Raises:
      UserError: there is no such file or list, or it holds something else than different dicts of settings.
    """
    if not Path(file).is_file():
        raise UserError(f"--sweep: there is no file {file}")
    try:
        found = runpy.run_path(file).get("sweep")
    except Exception as error:  # a user's own code may raise anything
        raise UserError(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(found, list):
        raise UserError(f"{file} defines no list `sweep`, such as sweep = [{{'seed': seed}} for seed in range(3)]")
    if not found:
        raise UserError(f"{file}: the list `sweep` is empty")
    seen: dict[tuple[str, ...], int] = {}
    for i, element in enumerate(found):
        if not isinstance(element, dict) or not all(isinstance(key, str) for key in element):
            raise UserError(f"{file}: sweep[{i}] is {element!r}, not a dict of settings")
        for key, value in element.items():
            parts = value if isinstance(value, list | tuple) else (value,)
            if not all(part is None or isinstance(part, bool | int | float | str | np.generic) for part in parts):
                raise UserError(f"{file}: sweep[{i}]: {key} is {value!r}; values are numbers, strings and tuples")
        words = tuple(word for item in sorted(element.items()) for word in arguments(dict([item])))
        if words in seen:
            raise UserError(f"{file}: sweep[{seen[words]}] and sweep[{i}] are equal: {element}")
        seen[words] = i
    return found


def arguments(element: Element) -> list[str]:
    """Settings as the command line wants them: `--flag` or `--no-flag` for a bool, several words for a tuple."""
    words: list[str] = []
    for key, value in element.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool | np.bool_):
            owner, dot, field = flag[2:].rpartition(".")
            words.append(flag if value else f"--{owner}{dot}no-{field}")
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif isinstance(value, str) and value.startswith("-"):  # it would be read as the next flag
            words.append(f"{flag}={value}")
        else:
            words += [flag, str(value)]
    return words


def labels(elements: list[Element]) -> dict[str, str]:
    """What each setting is called in names and tables: its last part, or all of it where two settings share that."""
    keys = dict.fromkeys(key for element in elements for key in element)
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: last[key] if count[last[key]] == 1 else key for key in keys}


def names(elements: list[Element]) -> list[str]:
    """A name for every element, such as `learning_rate=0.001,seed=0`: different, and fit for any file system."""
    called = labels(elements)
    found = [
        ",".join(f"{called[key]}={shown(value, '_')}" for key, value in element.items()) or "base"
        for element in elements
    ]
    plain = [re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII) for name in found]
    count = Counter(name.casefold() for name in found)  # some file systems know no case
    for i, (name, element) in enumerate(zip(plain, elements, strict=True)):
        if name != found[i] or len(name) > LONGEST or count[name.casefold()] > 1:
            digest = hashlib.sha256("\0".join(arguments(element)).encode()).hexdigest()[:8]
            plain[i] = f"{name[: LONGEST - 9]}-{digest}"
    return plain


def shown(value: Any, between: str = " ") -> str:
    return between.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def one_line(box: str) -> str:
    """What tyro's box of a mistake says, without its title and its last part, which is of no help here."""
    lines = [line.strip(" │") for line in re.sub("^╭─(.*?)─*╮", r"\1\n────", box.strip()).splitlines()]
    parts = [" ".join(part.split()) for part in re.split(r"\n[-─]{3,}\n", "\n".join(lines))]
    return "; ".join(parts[1:-1] or parts)


def slots(at_once: int, environment: Mapping[str, str], gpus: int = 0) -> list[dict[str, str]]:
    """The variables that leave the runs of each slot one device of their own; none if runs follow one another.

    Lists of devices in `environment` are divided up, and those that hide every device stay as they are.
    ROCR_VISIBLE_DEVICES, too: HIP counts the devices that this leaves.

    Args:
      gpus: how many of Nvidia's there are, where that is known.

    Raises:
      UserError: there are fewer devices than slots; jax would train on the CPU without a word.
    """
    if at_once == 1:
        return [{}]
    if 0 < gpus < at_once and "CUDA_VISIBLE_DEVICES" not in environment and environment.get("JAX_PLATFORMS") != "cpu":
        raise UserError(f"--at-once {at_once} wants as many devices, one a run, and there are {gpus}")
    cuda = environment.get("CUDA_VISIBLE_DEVICES")
    lists = {"CUDA_VISIBLE_DEVICES": cuda, "HIP_VISIBLE_DEVICES": environment.get("HIP_VISIBLE_DEVICES", cuda)}
    lists["TPU_VISIBLE_CHIPS"] = environment.get("TPU_VISIBLE_CHIPS")
    found = [dict(TPU_ALONE) for _ in range(at_once)]
    for name, given in lists.items():
        if given in ("", "-1"):
            continue
        devices = [str(i) for i in range(at_once)] if given is None else given.split(",")
        if len(devices) < at_once:
            raise UserError(f"--at-once {at_once} wants as many devices, one a run, and there is {name}={given}")
        for slot, variables in enumerate(found):
            variables[name] = devices[slot].strip()
    return found


def table(elements: list[Element], outcomes: list[Outcome]) -> list[list[Any]]:
    """The heads of the columns, and a row for every run: its settings, its status and the numbers of its summary."""
    summaries = [outcome.summary or {} for outcome in outcomes]
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)  # noqa: E731
    numbers = list(dict.fromkeys(name for s in summaries for name, value in s.items() if number(value)))
    numbers = [name for name in numbers if name != "steps"]  # a setting
    called = labels(elements)
    heads = [f"--{key}" if label in (*numbers, "status") else label for key, label in called.items()]
    rows = [
        [
            *(shown(element[key]) if key in element else "" for key in called),
            outcome.status,
            *(summary[name] if number(summary.get(name)) else "" for name in numbers),
        ]
        for element, outcome, summary in zip(elements, outcomes, summaries, strict=True)
    ]
    return [[*heads, "status", *numbers], *rows]


def aligned(rows: list[list[Any]]) -> str:
    """A table as lines of equal length, numbers to the right."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = [any(isinstance(row[i], str) and row[i] for row in rows[1:]) for i in range(len(widths))]
    return "\n".join(
        "  ".join(cell.ljust(w) if left else cell.rjust(w) for cell, w, left in zip(row, widths, texts, strict=True))
        for row in cells
    )


def as_csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
