"""What is kept beside a figure, in NAME.json: by what it was made, when, on what, and our number.

A figure is up to date where its record is of the settings that would make it now: scale, run, text and the constants
of its module. What it was made by besides, and the paper's side of it, is read where it stands.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class Record:
    """How one figure was made, or why it was not."""

    scale: str
    settings: str  # their digest
    command: str
    seconds: float
    cpu_seconds: float  # of all threads
    hardware: str
    date: str
    headline: str = ""
    error: str = ""  # what went wrong; empty where there is a figure

    def write(self, folder: Path, name: str) -> None:
        """Whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.json.part"
        part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        part.replace(folder / f"{name}.json")


def read(folder: Path, name: str) -> Record | None:
    """The record of a figure; None where there is none, or none of today's form."""
    try:
        found = json.loads((folder / f"{name}.json").read_text())
        kinds = {field.name: str if field.type is str else (int, float) for field in fields(Record)}
        return Record(**found) if all(isinstance(found[name], kind) for name, kind in kinds.items()) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def settings_of(module: ModuleType, scale: str, run: str = "", data: str = "") -> str:
    """A digest of what a figure was asked for and of the constants of its module; other modules' are not in it."""
    constants = {name: value for name, value in vars(module).items() if name.isupper() and name != "SOURCE"}
    written = repr((scale, run, data, sorted((name, repr(value)) for name, value in constants.items())))
    return hashlib.sha256(re.sub(r" at 0x\w+", "", written).encode()).hexdigest()[:16]  # functions have addresses


def hardware() -> str:
    """What this process computes on."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores{_model()}"


def _model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return f" ({found[1].strip()})" if found else ""
