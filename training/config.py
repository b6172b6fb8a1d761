"""Experiments to JSON and back, by registered name.

A dataclass is written as `{"type": "ddim.DDIM", "eta": 0.0}`: the file it lives in, its name and its fields. Names are
looked up among the project's own dataclasses and those of an experiment file that the user named; nothing is imported,
evaluated or unpickled because a configuration says so.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import os
import pkgutil
import re
import types
import typing
from pathlib import Path
from typing import Any

from flax import linen as nn

from samplers.catalogue import command_name
from training.errors import UserError

PACKAGES = ("data", "paths", "models", "losses", "samplers", "metrics", "training")
LARGEST = 2**24  # bytes of a JSON file that is read; a run's own have thousands, and tens of them with an alphabet
_of_user: dict[str, type] = {}


@functools.cache
def _of_project() -> dict[str, type]:
    found: dict[str, type] = {}
    for package in PACKAGES:
        for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            found |= _classes(importlib.import_module(info.name))
    return found


def _classes(module: types.ModuleType) -> dict[str, type]:
    stem = module.__name__.split(".")[-1]
    return {
        f"{stem}.{name}": value
        for name, value in vars(module).items()
        if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    }


def register(module: types.ModuleType) -> None:
    """Adds the dataclasses of a user's own file, for this process."""
    _of_user.update(_classes(module))


def registry() -> dict[str, type]:
    """All names a configuration may use."""
    return _of_project() | _of_user


def field_names(cls: type) -> list[str]:
    """The fields of a dataclass that are configuration (a Linen module has two that are not)."""
    hidden = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [f.name for f in dataclasses.fields(cls) if f.name not in hidden]


def encode(value: Any) -> Any:
    """A configuration as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        stem = type(value).__module__.split(".")[-1]
        fields = {name: encode(getattr(value, name)) for name in field_names(type(value))}
        return {"type": f"{stem}.{type(value).__name__}"} | fields
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{value!r} cannot be part of a configuration: use numbers, strings, tuples and dataclasses")


def decode(value: Any, where: str = "config") -> Any:
    """The inverse of `encode`.

    Raises:
      UserError: an unknown type or field, a missing field, or a value of the wrong type; names the place.
    """
    if isinstance(value, list):
        return tuple(decode(item, f"{where}.{i}") for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    name = value.get("type")
    cls = registry().get(name) if isinstance(name, str) else None
    if cls is None:
        raise UserError(
            f"{where}: no dataclass {name!r} is known here; where the run was made from a file of one's own, name that "
            "file again: --experiment FILE"
        )
    names = field_names(cls)
    given = {key: decode(item, f"{where}.{key}") for key, item in value.items() if key != "type"}
    for key in given:
        if key not in names:
            raise UserError(f"{where}: {name} has no field {key!r}{nearest(key, names)}")
    hints = typing.get_type_hints(cls)
    for key, item in given.items():
        if not fits(item, hints[key]):
            raise UserError(f"{where}.{key}: {item!r} is not a {describe(hints[key])}")
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a configuration value is of the annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(fits(v, a) for v, a in zip(value, arguments, strict=True))
    if isinstance(value, int) and value.bit_length() > 63:  # JSON has integers that no array holds
        return False
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint or type(None)) if hint is None or inspect.isclass(hint) else False


def describe(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def nearest(name: str, allowed: Any) -> str:
    """`; did you mean a, b?`, or what is allowed if nothing is near."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(allowed)}"


def plain(name: str) -> str:
    """A class or command-line name without case, dashes and underscores."""
    return re.sub(r"[-_]", "", name).lower()


def options(family: type) -> dict[str, type]:
    """The registered members of a family (a base class), by their name on the command line."""
    found: dict[str, type] = {}
    for cls in registry().values():
        if issubclass(cls, family) and not inspect.isabstract(cls) and command_name(cls):
            name = command_name(cls)
            found[name] = cls
    return found


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The fields in which two encoded configurations differ, as `a.b: 1 → 2`."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{where}.{key}".strip("."))]
    if old == new:
        return []

    def show(value: Any) -> str:
        return str(value.get("type")) if isinstance(value, dict) else json.dumps(value)

    return [f"{where}: {show(old)} in the run, {show(new)} asked for"]


def save(experiment: Any, path: Path) -> None:
    write_whole(path, json.dumps(encode(experiment), indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whatever ends the process."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may write it at once
    part.write_text(text)
    part.replace(path)


def read_json(path: Path) -> Any:
    """A file's value.

    Raises:
      ValueError: it is not JSON, no text at all, larger than what a run writes, or nested beyond what Python follows.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than the {LARGEST} that are read")
    return parse_json(path.read_text())


def parse_json(text: str) -> Any:
    """As `json.loads`, but that whatever is wrong is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or comes from itself") from error


def load(path: Path) -> Any:
    """Reads a run's configuration.

    Raises:
      UserError: not JSON, or not a valid experiment.
    """
    try:
        return decode(read_json(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
