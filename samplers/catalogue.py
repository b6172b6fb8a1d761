"""The solvers by their names on the command line, and a table of them."""

import functools
import importlib
import inspect
import pkgutil
import re
import sys

import samplers
from samplers.solver import Solver


def command_name(cls: type) -> str:
    """A class's `NAME`, or its own name in snake case: ReverseSDE is reverse_sde. Empty: not to be chosen."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    return vars(cls).get("NAME", words)


@functools.cache
def solvers() -> dict[str, type[Solver]]:
    """Every solver of this folder by name, in alphabetical order."""
    found: dict[str, type[Solver]] = {}
    for info in pkgutil.iter_modules(samplers.__path__):
        if info.name == "check":  # a script
            continue
        module = importlib.import_module(f"samplers.{info.name}")
        for cls in vars(module).values():
            if not inspect.isclass(cls) or not issubclass(cls, Solver) or cls.__module__ != module.__name__:
                continue
            if command_name(cls) and not inspect.isabstract(cls):
                found[command_name(cls)] = cls
    return dict(sorted(found.items()))


def calls(solver: Solver) -> str:
    """Network calls of N steps, as a formula: N, 2N−1, N+1, or adaptive."""
    few, many = solver.network_calls(10), solver.network_calls(20)
    if few is None or many is None:
        return "adaptive"
    slope = (many - few) // 10
    rest = few - 10 * slope
    return ("" if slope == 1 else str(slope)) + "N" + (f"{'+' if rest > 0 else '−'}{abs(rest)}" if rest else "")


def source(cls: type[Solver]) -> str:
    """The arXiv id of the paper, as the solver's module names it first."""
    found = re.search(r"\b\d{4}\.\d{5}\b", inspect.getdoc(sys.modules[cls.__module__]) or "")
    return found[0] if found else "–"


def listing() -> str:
    """What `sample.py --list-samplers` prints: each solver with its default settings."""
    rows = [("sampler", "order", "calls for N steps", "noise", "arXiv", "what")]
    for name, cls in solvers().items():
        solver = cls()
        order = "–" if solver.stated_order is None else str(solver.stated_order)
        noise = "yes" if solver.stochastic else "no"
        what = (inspect.getdoc(cls) or "").partition("\n")[0].partition(":")[0]
        rows.append((name, order, calls(solver), noise, source(cls), what))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "One of your own: --sampler file.py:function (docs/your_own_sampler.md)."])
