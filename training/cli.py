"""The command line: an experiment's fields are its flags.

`--a.b VALUE` sets a plain field through tyro. Where the field is itself a dataclass, `--a.b NAME` chooses a registered
member of its family (`--model.path cosine`, `--loss.weighting min_snr`), and its own fields follow under that prefix.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import tyro

from samplers.catalogue import command_name
from training import config
from training.distributed import Cluster
from training.errors import UserError
from training.experiment import Experiment
from training.mesh import Mesh

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
HELP = {"-h", "--help"}
ELSEWHERE = {  # what other codebases call a setting, and where it is here
    "lr": ("optimizer", "learning_rate"),
    "wd": ("optimizer", "weight_decay"),
    "bs": ("batch_size",),
    "epochs": ("steps",),
    "nfe": ("sampler", "steps"),
}
T = TypeVar("T")


def experiment_names() -> dict[str, str]:
    """Every experiment in the folder, with the first line of its docstring. Imports nothing."""
    files = sorted(path for path in EXPERIMENTS.glob("*.py") if path.stem != "__init__")
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0] for path in files}


@functools.cache
def load_module(name: str) -> types.ModuleType:
    """An experiment by name, or a user's own file by path.

    Raises:
      UserError: no such experiment or file, or one without an `experiment`.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, map(str, path.parent.glob("*.py")), n=1)
            raise UserError(f"there is no file {name}" + "".join(f"; did you mean {other}?" for other in near))
        if path.stem in sys.modules or any(key.startswith(path.stem + ".") for key in config.registry()):
            raise UserError(f"{name} has the name of a module that is in use here; rename it")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        config.register(module)
    elif name in experiment_names():
        module = importlib.import_module(f"experiments.{name}")
    else:
        said = (
            f"; did you mean {name}.py?" if Path(f"{name}.py").is_file() else config.nearest(name, experiment_names())
        )
        raise UserError(f"there is no experiment {name!r}{said}")
    if not isinstance(getattr(module, "experiment", None), Experiment):
        raise UserError(f"{name} defines no `experiment = Experiment(...)`")
    return module


def load_experiment(name: str, tiny: bool = False, preset: str | None = None) -> Experiment:
    """The module's `experiment`, its `tiny` form, or one of its `presets`.

    Raises:
      UserError: as `load_module`, or there is no such form.
    """
    module = load_module(name)
    if preset is not None:
        presets = getattr(module, "presets", {})
        if preset not in presets:
            known = config.nearest(preset, presets) if presets else "; it has none"
            raise UserError(f"{name} has no preset {preset!r}{known}")
        return presets[preset]
    if tiny and not isinstance(getattr(module, "tiny", None), Experiment):
        raise UserError(f"{name} defines no `tiny = replace(experiment, ...)`; --steps 20 cuts it short")
    return module.tiny if tiny else module.experiment


def take(arguments: list[str], flag: str, has_value: bool = False) -> str | None:
    """Removes a flag from the arguments, with its value; None where it is not among them.

    Raises:
      UserError: its value is missing.
    """
    for i, argument in enumerate(arguments):
        if argument == flag:
            if not has_value:
                return arguments.pop(i)
            if i + 1 == len(arguments):
                raise UserError(f"{flag} needs a value")
            del arguments[i]
            return arguments.pop(i)
        if has_value and argument.startswith(flag + "="):
            return arguments.pop(i).partition("=")[2]
    return None


def take_cluster(arguments: list[str]) -> Cluster:
    """Takes out of the arguments where the processes of a run meet."""
    number = lambda flag: take_number(arguments, flag)  # noqa: E731
    sought, coordinator = bool(take(arguments, "--distributed")), take(arguments, "--coordinator", has_value=True)
    processes, process = number("--processes"), number("--process")
    return Cluster(
        sought=sought,
        coordinator=coordinator or "",
        processes=processes or 0,
        process=-1 if process is None else process,
    )


def take_number(arguments: list[str], flag: str) -> int | None:
    """Takes a flag and its whole number out of the arguments.

    Raises:
      UserError: it has no value, or one that is no such number.
    """
    text = take(arguments, flag, has_value=True)
    if text is not None and not text.isdecimal():
        raise UserError(f"{flag} {text}: this takes a whole number")
    return None if text is None else int(text)


def take_mesh(arguments: list[str], of_run: Mesh) -> Mesh:
    """Takes `--mesh.…` out of the arguments; without any, the run's own mesh on the devices that are here.

    Raises:
      UserError: a setting that the mesh refuses.
    """
    own: list[str] = []
    while (at := next((i for i, word in enumerate(arguments) if word.startswith("--mesh.")), None)) is not None:
        own.append("--" + arguments.pop(at).removeprefix("--mesh."))
        if "=" not in own[-1] and at < len(arguments):
            own.append(arguments.pop(at))
    everywhere = dataclasses.replace(of_run, data=0)
    return parse(everywhere, own, "--mesh") if own else everywhere.here()


def parse(default: T, arguments: list[str], prog: str, description: str = "") -> T:
    """`default` with the command line's changes.

    Raises:
      UserError: a name that is none of its family's, a setting by the name it has elsewhere, or a value that its
        dataclass refuses.
      SystemExit: help was asked for (0), or a flag is unknown or of another type (2).
    """
    default, arguments = choose(default, arguments)
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        path = ELSEWHERE.get(flag[2:], ())
        meant = [at for at in (path, path[-1:]) if _look_up(default, [*at])[0] is not None]  # sample.py: --steps
        if meant:
            raise UserError(f"there is no {flag}; did you mean --{'.'.join(meant[0]).replace('_', '-')}?")
    if HELP & {*arguments}:
        description += "\nTo be chosen by name:\n" + "\n".join(choices(default))
    try:
        own = (tyro.conf.AvoidSubcommands,)  # what may be None is chosen by name, too
        return tyro.cli(type(default), default=default, args=arguments, prog=prog, description=description, config=own)
    except ValueError as error:  # a setting that its own dataclass refuses
        raise UserError(str(error)) from error


def choices(value: Any, prefix: str = "--") -> list[str]:
    """A line for every field or member of a tuple, at any depth, whose object can be exchanged for another of its
    family by name; the present one stands in brackets."""
    names = [str(i) for i in range(len(value))] if isinstance(value, tuple) else config.field_names(type(value))
    lines, above = [], None
    for name in names:
        current, flag = _item(value, name), prefix + name.replace("_", "-")
        optional = _optional(value, name)
        if dataclasses.is_dataclass(current) or optional:
            present = "none" if current is None else command_name(type(current))
            members = [*sorted(config.options(_family(value, name, current))), *(["none"] if optional else [])]
            told = [f"[{member}]" if member == present else member for member in members]
            if members == above:  # as those of a tuple are
                told = [f"[{present}]", "or another of the above"]
            if len(members) > 1:
                lines.append(f"  {flag}  {', '.join(told)}")
            above = members
        if dataclasses.is_dataclass(current) or isinstance(current, tuple):
            lines += choices(current, flag + ".")
    return lines


def _item(value: Any, name: str) -> Any:
    return value[int(name)] if isinstance(value, tuple) else getattr(value, name)


def choose(default: T, arguments: list[str]) -> tuple[T, list[str]]:
    """Takes every `--field NAME` whose field is a dataclass out of the arguments, and puts that member in its place."""
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        flag, equals, value = argument.partition("=")
        path = flag[2:].replace("-", "_").split(".") if flag.startswith("--") else []
        owner, current = _look_up(default, path)
        optional = bool(path) and _optional(owner, path[-1])
        if not path or not (dataclasses.is_dataclass(current) or optional):
            rest.append(argument)
            continue
        if not equals:
            value = queue.pop(0) if queue and not queue[0].startswith("-") else ""
        none = optional and value in ("none", "None")  # a plain field's is None
        family = _family(owner, path[-1], current)
        if not none and value not in config.options(family) and (inner := _field_for(current, value)):
            raise UserError(f"{flag} {value}: did you mean {flag}.{inner.replace('_', '-')} {value}?")
        new = None if none else member(flag, family, value, queue)
        default = _replaced(default, path, new)
    return default, rest


def _field_for(value: Any, wanted: str) -> str | None:
    """The field of a dataclass that takes a member of that name."""
    fields = config.field_names(type(value)) if dataclasses.is_dataclass(value) else []
    return next((name for name in fields if wanted in config.options(_family(value, name, _item(value, name)))), None)


def _look_up(value: Any, path: list[str]) -> tuple[Any, Any]:
    owner = None
    for name in path:
        inside = isinstance(value, tuple) and name.isdecimal() and int(name) < len(value)
        if not inside and not (dataclasses.is_dataclass(value) and name in config.field_names(type(value))):
            return None, None
        owner, value = value, _item(value, name)
    return owner, value


def _optional(owner: Any, name: str) -> type | None:
    """The dataclass that the field holds or None, where it is annotated so."""
    if not dataclasses.is_dataclass(owner) or name not in config.field_names(type(owner)):
        return None
    arguments = typing.get_args(typing.get_type_hints(type(owner))[name])
    members = [item for item in arguments if dataclasses.is_dataclass(item)]
    return members[0] if len(members) == 1 and type(None) in arguments else None  # pyright: ignore[reportReturnType]


def _family(owner: Any, name: str, current: Any) -> type:
    """The class that the field is annotated with, or with None; of a tuple's member, the abstract one of its bases."""
    if not isinstance(owner, tuple):
        hint = _optional(owner, name) or typing.get_type_hints(type(owner))[name]
        if inspect.isclass(hint):
            return hint
    return next((base for base in type(current).__mro__ if inspect.isabstract(base)), type(current))


def member(flag: str, family: type, name: str, queue: list[str]) -> Any:
    """The family's member of that name. What it cannot do without is taken from `--flag.field` in the queue.

    Raises:
      UserError: there is none of that name, or something that it needs is missing.
    """
    members = config.options(family)
    by_plain = {config.plain(key): cls for key, cls in members.items()}
    cls = by_plain.get(config.plain(name))
    if cls is None:
        raise UserError(f"{flag} {name}: no {family.__name__} of that name{config.nearest(name, members)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if not required:
        return cls()
    own: list[str] = []
    for field in required:
        spellings = (f"{flag}.{field}", f"{flag}.{field.replace('_', '-')}")
        at = next((i for i, word in enumerate(queue) if word.partition("=")[0] in spellings), None)
        if at is None and HELP & {*queue}:  # and what it needs is not known yet
            tyro.cli(cls, args=["--help"], prog=f"{flag} {name}", description=f"Each after it, as {flag}.{field}:")
        if at is None:
            raise UserError(f"{flag} {name} needs {flag}.{field}, after it")
        end = next((i for i in range(at + 1, len(queue)) if queue[i].startswith("--")), len(queue))
        own += ["--" + queue[at].removeprefix(flag + "."), *queue[at + 1 : end]]
        del queue[at:end]
    return tyro.cli(cls, args=own, prog=f"{flag} {name}")


def _replaced(value: Any, path: list[str], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, tuple):
        index = int(path[0])
        return (*value[:index], _replaced(value[index], path[1:], new), *value[index + 1 :])
    return dataclasses.replace(value, **{path[0]: _replaced(getattr(value, path[0]), path[1:], new)})
