"""Checks a sampler against exact densities and draws it beside the built-in ones.

    python -m samplers.check dpmpp_2m
    python -m samplers.check my_file.py:my_sampler --path vp --plot mine.png

Every line ends in PASS or FAIL; the exit status is 1 if one failed and 2 if the sampler cannot be read or run.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path as File
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paths.grids import Uniform, UniformLogSNR
from paths.path import Path
from paths.schedules import EDM, VE, VP, Cosine, DDPMLinear, Rectified, SubVP
from samplers import measure, own
from samplers.adaptive import AdaptiveSolver
from samplers.catalogue import solvers
from samplers.diffusion import solve
from samplers.sampler import sample_keys
from samplers.solver import Solver
from samplers.targets import GAUSSIAN_64, PLANE

PATHS: dict[str, Path] = {
    "vp": VP(),
    "ve": VE(),
    "cosine": Cosine(),
    "rectified": Rectified(),
    "sub_vp": SubVP(),
    "ddpm_linear": DDPMLinear(),
    "edm": EDM(),
}
UNSTATED = "no order is stated, and any above 0.5 passes: state `order`, or say --order 2"
MEASURED = ("vp", "ve", "cosine", "rectified")
FINEST, SAMPLES = 400, 4000
CHANCE = 1.5  # how much farther from exact samples than exact samples are from each other
WEAK_ERROR = 0.02  # data units: what a stochastic solver of order 1 has left at the finest grid


class Line(NamedTuple):
    """One finding."""

    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.text}"


def check(solver: Solver, paths: tuple[str, ...] = (), stated: int | None = None) -> Iterator[Line]:
    """All findings about a solver, as they are made.

    Args:
      paths: names of the paths on which order and bias are measured, and finiteness is tried.
        By default all are tried, and four of them measured.
      stated: the order to be reached; what the solver itself states by default.
    """
    tried, paths = paths or tuple(PATHS), paths or MEASURED
    stated = solver.stated_order if stated is None else stated
    adaptive = isinstance(solver, AdaptiveSolver)
    for name in paths:
        yield from _tolerance(solver, name) if adaptive else _order(solver, name, stated)
    for name in paths:
        yield from _bias(solver, name)
    yield from _calls(solver, PATHS[paths[0]])
    difference = measure.split_difference(solver, PATHS[paths[0]])
    yield Line(difference < 1e-9, f"batch split: largest difference {difference:.1e} (limit 1e-9, float64)")
    for name in tried:
        yield _ends(solver, name, PATHS[name])


def _order(solver: Solver, name: str, stated: int | None) -> Iterator[Line]:
    what = "weak order" if solver.stochastic else "order"
    try:
        found = measure.order(solver, PATHS[name])
    except measure.NotAffineError as error:
        yield Line(stated is None, f"{what} on {name}: not measured, {error}")
        return
    errors = ", ".join(f"{e:.1e}" for e in found.errors)
    text = f"{what} on {name}: {found.order:.2f} (errors {errors} at {found.steps[0]} … {found.steps[-1]} steps)"
    if stated is None:
        yield Line(bool(np.isfinite(found.order)) and found.order > 0.5, f"{text}; {UNSTATED}")
    else:
        yield Line(found.order > stated - 0.2, f"{text}; stated {stated}")


def _tolerance(solver: Solver, name: str) -> Iterator[Line]:
    error = measure.strong_error(solver, PATHS[name], 40)
    yield Line(error < 1e-3, f"error on {name}: {error:.1e} with the settings given (limit 1e-3)")


def _bias(solver: Solver, name: str) -> Iterator[Line]:
    yield _gaussian_bias(solver, name)
    path, n = PATHS[name], SAMPLES
    first, second = (np.asarray(PLANE.sample(jax.random.key(seed), n)) for seed in (1, 2))
    chance = measure.sliced_wasserstein(first, second)
    distance = measure.sliced_wasserstein(measure.draw(solver, PLANE, path, FINEST, n), first)
    limit = CHANCE * chance + (WEAK_ERROR if solver.stochastic else 0.0)
    text = f"2-D mixture on {name}, {FINEST} steps: sliced Wasserstein {distance:.4f} from exact samples"
    yield Line(distance < limit, f"{text}, these {chance:.4f} from others (limit {limit:.4f})")


def _gaussian_bias(solver: Solver, name: str) -> Line:
    try:
        mean, std = measure.landing_moments(solver, GAUSSIAN_64, PATHS[name], FINEST)
        chance = 0.0
    except measure.NotAffineError:
        x = measure.draw(solver, GAUSSIAN_64, PATHS[name], FINEST, SAMPLES)
        mean, std = measure.moment_errors(GAUSSIAN_64, x.mean(0), x.std(0))
        chance = 4.0 / np.sqrt(SAMPLES)
    limit = 0.05 + chance
    text = f"64-D Gaussian on {name}, {FINEST} steps: mean off by {mean:.4f} std, std by {std:.4f}"
    return Line(mean < limit and std < limit, f"{text} of it (limit {limit:.2f})")


def _calls(solver: Solver, path: Path) -> Iterator[Line]:
    for steps in (1, 2, 10):
        counted, stated = measure.counted_calls(solver, path, steps)
        yield Line(counted == stated, f"network calls of {steps} steps: {counted} counted, {stated} stated")


def _ends(solver: Solver, name: str, path: Path) -> Line:
    refused = []
    for grid in (Uniform(), UniformLogSNR()):
        for steps in (1, 10):
            knots, D = grid.knots(path, steps), PLANE.denoise(path)
            keys = sample_keys(jax.random.key(0), jnp.arange(32))
            try:
                x = jax.jit(lambda keys, D=D, knots=knots: solve(solver, D, path, knots, keys, (2,)).x)(keys)
            except ValueError as error:
                refused.append(str(error))
                continue
            if not bool(jnp.all(jnp.isfinite(x))):
                return Line(False, f"ends of {name}: not finite in {steps} steps on {type(grid).__name__}")
    return Line(True, f"ends of {name}: " + (f"refused where {refused[0]}" if refused else "finite from both ends"))


def curves(
    solver: Solver, path: Path, steps: tuple[int, ...] = (5, 10, 20, 40, 80, 160)
) -> tuple[list[int], list[float]]:
    """Network calls and error (strong, or weak if stochastic) at some numbers of steps."""
    error = measure.weak_error if solver.stochastic else measure.strong_error
    # One less than a solve onto data of a step more: its last call is not made here.
    calls = [n for step in steps if (n := solver.network_calls(step + 1))]
    return [n - 1 for n in calls], [error(solver, path, step) for step in steps]


def plot(solver: Solver, name: str, path_name: str, file: File) -> None:
    """Error against network calls, beside the built-in solvers of its kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = PATHS[path_name]
    beside = ("ddpm", "reverse_sde", "sde_dpmpp_2m", "stochastic_heun") if solver.stochastic else (
        "ddim", "heun", "dpm_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "rk4",
    )  # fmt: skip
    figure = Figure(figsize=(6.4, 4.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    for other in beside:
        if other != name:
            axes.loglog(*curves(solvers()[other](), path), marker=".", lw=1, alpha=0.7, label=other)
    axes.loglog(*curves(solver, path), "k-o", lw=2, ms=5, label=name)
    kind = "mean + deviation, Gaussian" if solver.stochastic else "end of the ODE, 1-D mixture"
    axes.set(xlabel="network calls", ylabel=f"error ({kind}; data units)", title=f"{name} on {path_name}")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(file)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m samplers.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The sampler's own settings follow as flags: python -m samplers.check ddim --eta 0.5",
    )
    parser.add_argument("sampler", help=f"file.py:name, or one of {', '.join(solvers())}")
    parser.add_argument("--path", choices=list(PATHS), help="this path alone")
    parser.add_argument("--order", type=int, help="the order to be reached, where the sampler states none")
    parser.add_argument("--plot", type=File, metavar="PNG", help="draw error against network calls to this file")
    options, rest = parser.parse_known_args(arguments)
    import tyro

    name = options.sampler
    try:
        if own.is_own(name):
            cls = own.load(name)
        elif name in solvers():
            cls = solvers()[name]
        else:
            raise own.SamplerError(f"there is no sampler {name!r}; there are {', '.join(solvers())}, or file.py:name")
        solver = tyro.cli(cls, args=rest, prog=f"python -m samplers.check {name}")
        own.rehearse(solver, name)
    except own.SamplerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    paths = (options.path,) if options.path else ()
    failed = 0
    for line in check(solver, paths, options.order):
        print(line, flush=True)
        failed += not line.passed
    print(f"{name}: " + (f"{failed} failed" if failed else "all passed"))
    if options.plot and isinstance(solver, AdaptiveSolver):
        print("no plot: an adaptive solver has tolerances, not numbers of steps")
    elif options.plot:
        plot(solver, name.rpartition(":")[2] if own.is_own(name) else name, (paths or MEASURED)[0], options.plot)
        print(f"wrote {options.plot}")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # whoever read along has read enough; what is left is not written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
