"""A sampler of one's own from any file: `--sampler file.py:name`. What the file may hold:

    table   def name(path, knots, *, setting=default): return A, B, S          samplers/multistep.py, eq. (1)
    step    def name(denoise, x, here, there, noise, *, setting=default): return x_next
            here and there have t, alpha and sigma, scalars; noise() is standard normal, shaped like x
    class   a subclass of Multistep, Singlestep or Kernel, frozen and keyword-only

Settings of a function, keyword-only with defaults, become flags. A function may state its order: `name.order = 2`.
"""

import dataclasses
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from paths.grids import Knots, UniformLogSNR
from paths.path import Path as NoisePath
from paths.schedules import VP
from samplers.kernel import Kernel, Row, Rows
from samplers.multistep import Multistep, Table
from samplers.sampler import noise_of_steps
from samplers.solver import Noise, Solver
from samplers.targets import PLANE

EXPECTED = """A sampler is one of
  def name(path, knots, *, settings): return A, B, S       knots.steps rows: A [n], B [n, k], S [n], float64
  def name(denoise, x, here, there, noise, *, settings): return x_next       of x's shape
  class Name(Multistep | Singlestep | Kernel)       frozen and keyword-only, every field with a default
See docs/your_own_sampler.md."""


class SamplerError(ValueError):
    """A user's sampler breaks the contract; says where, how and what the contract is."""


def is_own(name: str) -> bool:
    """Whether a sampler's name is `file.py:name`, or a file whose name is still to be said."""
    return ".py:" in name or name.endswith(".py")


def load(name: str) -> type[Solver]:
    """The solver's class from `file.py:name`. What it does is tried by `rehearse`.

    Raises:
      SamplerError: no such file or name, an error in the file, or no sampler.
    """
    file, _, attribute = name.partition(".py:")
    file = file.removesuffix(".py") + ".py"
    if not Path(file).is_file():
        raise SamplerError(f"{name}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"own_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SamplerError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        public = sorted(key for key, value in vars(module).items() if getattr(value, "__module__", "") == spec.name)
        wrong = f"defines no {attribute!r}" if attribute else "needs the name of a sampler, FILE.py:NAME"
        raise SamplerError(f"{file} {wrong}; it defines {', '.join(public) or 'nothing'}")
    found = getattr(module, attribute)
    if inspect.isclass(found) and issubclass(found, Solver):
        return found
    if callable(found) and not inspect.isclass(found):
        return from_function(found, name)
    raise SamplerError(f"{name} is a {type(found).__name__}.\n{EXPECTED}")


def from_function(function: Callable[..., Any], name: str) -> type[Solver]:
    """A solver's class around a table function or a step function; its keyword-only parameters become fields."""
    parameters = inspect.signature(function).parameters.values()
    given = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    settings = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    base = {("path", "knots"): TableFunction, ("denoise", "x", "here", "there", "noise"): StepFunction}.get(
        tuple(given)
    )
    if base is None:
        raise SamplerError(f"{name} takes ({', '.join(given)}).\n{EXPECTED}")
    hints = typing.get_type_hints(function)
    for p in settings:
        if p.default is p.empty:
            raise SamplerError(f"{name}: the setting {p.name} has no default")
    fields = [(p.name, hints.get(p.name, type(p.default)), dataclasses.field(default=p.default)) for p in settings]
    return dataclasses.make_dataclass(
        function.__name__,
        fields,
        bases=(base,),
        namespace={"FUNCTION": staticmethod(function), "__doc__": function.__doc__},
        frozen=True,
        kw_only=True,
    )


class _Function(Solver):
    FUNCTION: Callable[..., Any]

    def __post_init__(self) -> None:
        if not hasattr(self, "FUNCTION"):  # a configuration can name the bare class
            raise ValueError(
                "a function's sampler comes from a file that the command line names: --sampler FILE.py:NAME"
            )

    @property
    def stated_order(self) -> int | None:
        return getattr(self.FUNCTION, "order", None)

    def call(self, *arguments: Any) -> Any:
        return self.FUNCTION(*arguments, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})  # pyright: ignore[reportArgumentType], a dataclass where it is made


class Point(NamedTuple):
    """One end of a step, as a step function is given it."""

    t: Float[Array, ""]
    alpha: Float[Array, ""]
    sigma: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableFunction(_Function, Multistep):
    """Around `(path, knots, *, settings) → A, B, S`."""

    NAME = ""

    @property
    def stochastic(self) -> bool:
        return "S" in self.rows(VP(), UniformLogSNR().knots(VP(), 5).noisy)

    def table(self, path: NoisePath, knots: Knots) -> Table:
        table = self.call(path, knots)
        if not isinstance(table, tuple) or len(table) < 3:
            raise ValueError(f"it returned {describe(table)} in place of the arrays A, B, S")
        table = Table(*(part if part is None else np.asarray(part, np.float64) for part in table))  # pyright: ignore[reportArgumentType]
        n = knots.steps
        shapes = [np.shape(part) for part in table[:3]]
        if shapes[0] != (n,) or shapes[2] != (n,) or len(shapes[1]) != 2 or shapes[1][0] != n:
            raise ValueError(
                f"for {n} steps it must return A [{n}], B [{n}, k] and S [{n}], got {', '.join(map(str, shapes))}"
            )
        return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFunction(_Function, Kernel):
    """Around `(denoise, x, here, there, noise, *, settings) → x`. Its network calls and draws of noise are counted."""

    NAME = ""

    def rows(self, path: NoisePath, knots: Knots) -> Rows:
        ends = {"t": knots.t, "alpha": knots.alpha, "sigma": knots.sigma}
        return {name: np.stack([value[:-1], value[1:]], axis=1) for name, value in ends.items()}

    def step(self, denoise: Any, carry: Any, row: Row, noise: Noise) -> Any:
        here, there = (Point(row["t"][i], row["alpha"][i], row["sigma"][i]) for i in (0, 1))
        x = self.call(denoise, carry["x"], here, there, noise)
        if jnp.shape(x) != carry["x"].shape:
            raise ValueError(f"it returned {describe(x)}, but x has shape {carry['x'].shape}")
        return {"x": jnp.asarray(x, carry["x"].dtype)}

    def _count(self) -> tuple[int, int]:
        counts = [0, 0]

        def counting(which: int, x: Any) -> Any:
            counts[which] += 1
            return x

        def once(x: Any, number: Any) -> Any:
            row = {name: jnp.stack([number + 0.5, number]) for name in ("t", "alpha", "sigma")}
            return self.step(lambda x, t: counting(0, x), {"x": x}, row, lambda j=0: counting(1, x))

        jax.eval_shape(once, jnp.zeros((3, 2)), jnp.asarray(0.4))  # points, as in `rehearse`
        return counts[0], counts[1]

    @property
    def calls_per_step(self) -> int:
        return self._count()[0]

    @property
    def stochastic(self) -> bool:
        return self._count()[1] > 0


def describe(value: Any) -> str:
    """A value's kind and shape, in a message."""
    shape = getattr(value, "shape", None)
    return f"an array of shape {tuple(shape)}" if shape is not None else f"a {type(value).__name__}"


def rehearse(solver: Solver, name: str) -> None:
    """Runs a solver for five steps on a mixture in the plane, before it meets a network.

    Raises:
      SamplerError: it fails, changes the shape of x or is not finite; with the name of its file and the contract.
    """
    path, n = VP(), 3
    knots = UniformLogSNR().knots(path, 5)
    x = float(knots.sigma[0]) * jax.random.normal(jax.random.key(0), (n, 2))
    noise = noise_of_steps(jax.random.split(jax.random.key(1), n), x)
    try:
        solved = jax.jit(lambda x: solver.solve(PLANE.denoise(path), path, knots, x, noise, trajectory=True))(x)
        if solved.x.shape != x.shape:
            raise ValueError(f"it ends with shape {solved.x.shape}, but x had {x.shape}")
        states = np.asarray(solved.trajectory)
    except Exception as error:
        text = str(error).split("\n--------")[0]
        raise SamplerError(f"{name} failed in a rehearsal: {type(error).__name__}: {text}\n{EXPECTED}") from error
    wrong = np.flatnonzero(~np.isfinite(states).all(axis=(1, 2)))
    if len(wrong):
        raise SamplerError(
            f"{name} gave a value that is not finite at step {wrong[0]} of {len(states) - 1} on a 2-D mixture "
            f"(path vp, log-SNR grid). The last step onto data is not yours: all knots you are given have sigma > 0.\n"
            f"{EXPECTED}"
        )
