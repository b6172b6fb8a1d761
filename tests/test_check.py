"""samplers.check passes what is right and fails what is broken; a sampler of one's own, as the tutorial prints it."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from paths.grids import UniformLogSNR
from paths.schedules import VP
from samplers import own
from samplers.check import PATHS, _ends, check, main, plot
from samplers.ddim import DDIM
from samplers.dpmpp import DPMpp2M
from samplers.heun import Heun
from samplers.multistep import Table
from samplers.own import SamplerError, load, rehearse
from samplers.reverse_sde import ReverseSDE
from tests.conftest import tiers

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = (ROOT / "docs" / "your_own_sampler.md").read_text()


def first_failure(solver):
    """What the check finds first, without waiting for the rest."""
    return next((line.text for line in check(solver, ("vp",)) if not line.passed), None)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", tiers([DPMpp2M(), DDIM(eta=1.0)], first=(DPMpp2M(),)), ids=str)
def test_right_solvers_pass(solver):
    assert first_failure(solver) is None


@dataclass(frozen=True, kw_only=True)
class WrongCoefficient(DPMpp2M):
    """The history weighted a little too much."""

    def table(self, path, knots):
        A, B, S, *_ = super().table(path, knots)
        return Table(A, B * [[1.0, 1.1]], S)


@dataclass(frozen=True, kw_only=True)
class WrongGrid(DPMpp2M):
    """Asks the network at the time of the knot before the one it is at."""

    def table(self, path, knots):
        table = super().table(path, knots)
        return table._replace(t=np.concatenate([knots.t[:1], knots.t[:-2]]))


@dataclass(frozen=True, kw_only=True)
class ShiftedRows(DPMpp2M):
    """Each row is that of the step after it."""

    def table(self, path, knots):
        A, B, S, *_ = super().table(path, knots)
        return Table(np.append(A[1:], A[-1]), np.append(B[1:], B[-1:], axis=0), S)


@dataclass(frozen=True, kw_only=True)
class WrongCount(Heun):
    """States one call a step and makes two."""

    def network_calls(self, steps):
        return steps


@dataclass(frozen=True, kw_only=True)
class WrongNoise(ReverseSDE):
    """Noise of √2 times the size."""

    def table(self, path, knots):
        A, B, S, *_ = super().table(path, knots)
        return Table(A, B, S * np.sqrt(2.0))


@dataclass(frozen=True, kw_only=True)
class MixedBatch(DDIM):
    """Centres the batch: a sample depends on its neighbours."""

    def step(self, denoise, carry, row, noise):
        carry = super().step(denoise, carry, row, noise)
        return {**carry, "x": carry["x"] - 1e-6 * carry["x"].mean(axis=0, keepdims=True)}


@pytest.mark.parametrize(
    ("broken", "says"),
    tiers(
        [
            (WrongCoefficient(), "order on vp"),
            (WrongGrid(), "order on vp"),
            (ShiftedRows(), "order on vp"),
            (WrongCount(), "network calls of 2 steps: 3 counted, 2 stated"),
            (WrongNoise(), "weak order on vp"),
            (MixedBatch(), "batch split"),
        ],
        first=lambda broken, says: isinstance(broken, WrongCoefficient) or says.startswith("weak"),
    ),
    ids=lambda value: type(value).__name__,
)
def test_each_break_is_found(broken, says):
    assert says in str(first_failure(broken))


def blocks():
    return re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)


@pytest.mark.thorough
def test_the_tutorials_code_as_printed(tmp_path, capsys):
    for code, name, arguments in zip(
        blocks(),
        ("heun", "noisy_ddim", "Ralston"),
        (["--path", "ve"], ["--path", "vp", "--eta", "0.7"], ["--path", "cosine"]),
        strict=True,
    ):
        assert len(code.splitlines()) <= 32
        file = tmp_path / (re.findall(r'"""(\w+\.py)', code)[0])
        file.write_text(code)
        assert main([f"{file}:{name}", *arguments]) == 0
        assert re.search(r"^PASS  (weak )?order on", capsys.readouterr().out, re.MULTILINE)
    # The tutorial says itself that its first sampler fails where α = 0, at the noisy end of two paths.
    heun = load(f"{tmp_path / 'my_sampler.py'}:heun")()
    assert [name for name, path in PATHS.items() if not _ends(heun, name, path).passed] == ["cosine", "rectified"]


def test_names_and_settings_on_the_command_line(tmp_path, capsys):
    assert main(["dpmp_2m"]) == 2
    assert "there is no sampler 'dpmp_2m'; there are" in capsys.readouterr().err
    for arguments, message in ((["--eta", "3"], "eta=3.0 is not in [0, 1]"), (["--etta", "1"], "--eta")):
        with pytest.raises(SystemExit) as stopped:
            main(["ddim", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.thorough
def test_the_plot_holds_the_solver_and_its_peers(tmp_path):
    plot(DPMpp2M(), "dpmpp_2m", "vp", tmp_path / "a" / "plot.png")
    assert (tmp_path / "a" / "plot.png").stat().st_size > 20_000


MISTAKES = {
    "signature": ("def f(denoise, x):\n    return x\n", r"f takes \(denoise, x\)"),
    "not finite": ("def f(denoise, x, here, there, noise):\n    return x / 0\n", "not finite at step 1 of 5"),
    "shape": ("def f(denoise, x, here, there, noise):\n    return x[0]\n", r"shape \(2,\), but x has shape \(3, 2\)"),
    "raises": ("def f(denoise, x, here, there, noise):\n    return y\n", "NameError: name 'y' is not defined"),
    "table": ("import numpy as np\ndef f(path, knots):\n    return (np.ones(3),) * 3\n", r"A \[4\], B \[4, k\]"),
    "no table": ("def f(path, knots):\n    return 3\n", "returned a int in place of"),
    "table not finite": (
        "import numpy as np\ndef f(path, knots):\n    n = knots.steps\n"
        "    return np.full(n, np.nan), np.ones((n, 1)), np.zeros(n)\n",
        "gives A = nan in row 0 of 4",
    ),
    "no default": ("def f(path, knots, *, eta):\n    return 3\n", "the setting eta has no default"),
    "value": ("f = 3\n", "is a int"),
    "import": ("import nothing_of_that_name\n", "cannot be imported: ModuleNotFoundError"),
    "missing": ("def g(path, knots):\n    return 3\n", "defines no 'f'; it defines g"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_broken_file_is_named_with_the_function_and_the_contract(code, message, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(code)
    with pytest.raises(SamplerError, match=message) as caught:
        rehearse(load(f"{file}:f")(), f"{file}:f")
    assert str(file) in str(caught.value)
    if "imported" not in message and "defines" not in message and "default" not in message:
        assert "A sampler is one of" in str(caught.value)


def test_no_file():
    with pytest.raises(SamplerError, match=r"there is no file nowhere\.py"):
        load("nowhere.py:f")
    assert own.is_own("a/b.py:f")
    assert not own.is_own("ddim")


def test_a_file_alone_is_told_what_it_holds(tmp_path):
    (tmp_path / "mine.py").write_text("def f(path, knots):\n    return 3\n")
    assert own.is_own(str(tmp_path / "mine.py"))
    with pytest.raises(SamplerError, match=r"mine\.py needs the name of a sampler, FILE\.py:NAME; it defines f"):
        load(str(tmp_path / "mine.py"))


def test_a_step_function_counts_its_calls_and_its_noise(tmp_path):
    file = tmp_path / "three.py"
    file.write_text(
        "def f(denoise, x, here, there, noise, *, k: int = 3):\n"
        "    for _ in range(k):\n        x = denoise(x, here.t)\n    return x + there.sigma * noise()\n"
    )
    solver = load(f"{file}:f")(k=4)
    assert (solver.calls_per_step, solver.network_calls(10), solver.stochastic) == (4, 37, True)
    assert solver.rows(VP(), UniformLogSNR().knots(VP(), 5).noisy)["t"].shape == (4, 2)


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "samplers.check", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "file.py:name, or one of ddim" in done.stdout
