"""Speed of the samplers: `python benchmarks/samplers.py [scan compile diffusers diffrax adaptive]`, all by default.

    scan       every fixed-step solver as one compiled scan, over as many calls of the jitted network alone
    compile    tracing and compiling 1000 steps over 10 steps
    diffusers  a step of diffusers' schedulers (torch) over ours, with the same small network; pip install -e '.[bench]'
    diffrax    diffrax's fixed-step Euler and Heun over ours, same network, same times, same end
    adaptive   network calls that dopri5 and tsit5 report, those counted, and the steps that diffrax tries

What is compared runs in turn, round after round, on the same machine minute; ratios are taken within a round, and the
quartiles over rounds show the noise (`compile`: 7 rounds at most). Each part is a process of its own. On a CPU, jax
hands a program to another thread unless it holds a callback, as diffrax's does, and for a loop this small the other
thread costs 4 µs a step: in the two comparisons with other packages every program runs on the caller's thread. The exit
status is 1 where a figure misses its target.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.against_diffusers import against_diffusers
from benchmarks.timing import Small, Timed, drawing, interleaved, quartiles
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.grids import Knots, Uniform
from paths.schedules import VP, Rectified
from samplers.adaptive import AdaptiveSolver, Dopri5, Tsit5
from samplers.catalogue import solvers
from samplers.check import PATHS
from samplers.euler import Euler, velocity_coefficients
from samplers.heun import Heun
from samplers.integrators import Adaptive
from samplers.measure import counted_calls
from samplers.solver import Solver
from samplers.targets import LINE


def fixed_step() -> dict[str, Solver]:
    found = {name: cls() for name, cls in solvers().items()}
    return {name: solver for name, solver in found.items() if not isinstance(solver, AdaptiveSolver)}


def scan(rounds: int) -> bool:
    n, size, steps = 128, 64, 20
    model = Denoiser(net=MLP(width=384, depth=3), path=VP(), predicts="eps")
    forward = jax.jit(lambda params, x, t: model.net.apply({"params": params["params"]}, x, t))
    overheads = []
    print(f"scan: {steps} steps of {n} samples, over as many calls of the jitted network alone")
    for name, solver in fixed_step().items():
        draw, arguments = drawing(solver, model, Uniform().knots(model.path, steps), n, size)
        calls = solver.network_calls(steps) or 0
        params, _, x = arguments
        t = jnp.full((n,), 0.5)

        def network() -> None:
            for _ in range(calls):
                out = forward(params, x, t)
            out.block_until_ready()

        seconds = interleaved([lambda: draw(*arguments).block_until_ready(), network], rounds)
        ratios = seconds[:, 0] / seconds[:, 1]
        overheads.append(float(np.median(ratios)))
        each = 1e3 * np.median(seconds[:, 1]) / calls
        print(f"  {name:18} {calls:3} calls, network {each:5.2f} ms  ×{quartiles(ratios)}", flush=True)
    print(f"  median of the solvers ×{np.median(overheads):.3f}, largest ×{max(overheads):.3f}; target ×1.05\n")
    return max(overheads) <= 1.05


def compilation(rounds: int) -> bool:
    model = Denoiser(net=MLP(width=128, depth=3), path=VP(), predicts="eps")
    print("compile: tracing, lowering and compiling 1000 steps over 10 steps")
    jax.config.update("jax_enable_compilation_cache", False)
    overall = []
    for name, solver in fixed_step().items():

        def compiled(steps: int) -> Timed:
            knots = Uniform().knots(model.path, steps)
            draw, arguments = drawing(solver, model, knots, 16, 64)
            return lambda: jax.jit(lambda *a: draw.__wrapped__(*a)).lower(*arguments).compile()

        seconds = interleaved([compiled(10), compiled(1000)], min(rounds, 7))
        ratios = seconds[:, 1] / seconds[:, 0]
        overall.append(float(np.median(ratios)))
        print(f"  {name:18} {1e3 * np.median(seconds[:, 0]):4.0f} ms  ×{quartiles(ratios)}", flush=True)
    print(f"  median of the solvers ×{np.median(overall):.3f}, largest ×{max(overall):.3f}; target ×1.10\n")
    return max(overall) <= 1.10


def against_diffrax(rounds: int) -> bool:
    import diffrax

    n, size, steps = 16, 64, 50
    model = Denoiser(net=Small(), path=Rectified(), predicts="velocity")
    t = np.linspace(1.0, 1.0 / steps, steps)  # no step onto data, which diffrax does not have
    knots = Knots(t, model.path.alpha(t), model.path.sigma(t))
    print(f"diffrax {diffrax.__version__}: µs a step, {n} samples, {steps - 1} steps, the network says the velocity")
    good = True
    for solver, theirs in ((Euler(), diffrax.Euler()), (Heun(), diffrax.Heun())):
        draw, arguments = drawing(solver, model, knots, n, size)
        params, _, x = arguments

        def velocity(t: Any, x: Any, params: Any) -> Any:
            return model.raw(params, x, jnp.broadcast_to(t, x.shape[:1]))

        def solve(adjoint: Any) -> Any:
            def run(params: Any, x: Any) -> Any:
                span = {"t0": t[0], "t1": t[-1], "dt0": -1.0 / steps}
                term = diffrax.ODETerm(velocity)
                return diffrax.diffeqsolve(term, theirs, y0=x, args=params, adjoint=adjoint, **span).ys[-1]

            return jax.jit(run)

        runs = [solve(diffrax.RecursiveCheckpointAdjoint()), solve(diffrax.ForwardMode())]
        ends = [np.asarray(draw(*arguments)), *(np.asarray(run(params, x)) for run in runs)]
        off = max(float(np.abs(end - ends[0]).max()) for end in ends[1:])
        seconds = interleaved(
            [
                lambda: draw(*arguments).block_until_ready(),
                *(lambda run=run: run(params, x).block_until_ready() for run in runs),
            ],
            20 * rounds,  # of 200 µs each
        )
        ratios = seconds[:, 1:].min(axis=1) / seconds[:, 0]  # the faster of its two ways to solve forward
        mine, default, forward = 1e6 * np.median(seconds, axis=0) / (steps - 1)
        print(
            f"  {type(solver).__name__:6}{mine:6.1f}   diffrax {default:6.1f}, with ForwardMode {forward:6.1f}   "
            f"×{quartiles(ratios)}, ends differ by {off:.1e}",
            flush=True,
        )
        good &= bool(np.percentile(ratios, 75) >= 1.0 and off < 1e-4)
    print("  target ×1 within the quartiles\n")
    return good


def adaptive(rounds: int) -> bool:
    with jax.enable_x64(True):  # in float32 rounding rejects steps that float64 takes
        return _adaptive()


def _adaptive() -> bool:
    import diffrax

    good = True
    print("adaptive: network calls that a sample reports, and those counted in the network")
    for solver in (Dopri5(), Tsit5()):
        found = {name: counted_calls(solver, path, 10) for name, path in PATHS.items()}
        print(f"  {type(solver).__name__:8}" + ", ".join(f"{name} {n} {m}" for name, (m, n) in found.items()))
        good &= all(counted == stated for counted, stated in found.values())
    print("  ODE of the 1-D mixture on VP: steps diffrax tries with its own solver, evaluations reported here")
    D, path, x, start, end = LINE.denoise(VP()), VP(), jnp.ones((1, 1)), 1.0, 1e-3

    def field(t: Any, x: Any) -> Any:
        a, b = velocity_coefficients(path, t)
        return a * x + b * D(x, t)

    for method, theirs in (("dopri5", diffrax.Dopri5()), ("tsit5", diffrax.Tsit5())):
        for tolerance in (1e-3, 1e-5, 1e-7):
            ours = Adaptive(method=method, rtol=tolerance, atol=tolerance)
            first = ours._first_step(field, field(jnp.asarray(start), x), x, jnp.asarray(start), jnp.asarray(end))
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, x, _: field(t, x)),
                theirs,
                t0=start,
                t1=end,
                dt0=first,
                y0=x,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            )
            steps, nfe = int(solution.stats["num_steps"]), int(ours(field, x, start, end).nfe)
            same = nfe == 2 + 6 * steps
            print(f"  {method:8}{tolerance:g}: {steps} steps, {nfe} {'=' if same else '≠'} 2 + 6·{steps}")
            good &= same
    print()
    return good


PARTS = {
    "scan": scan,
    "compile": compilation,
    "diffusers": against_diffusers,
    "diffrax": against_diffrax,
    "adaptive": adaptive,
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles are shown")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts = options.parts or list(PARTS)
    if len(parts) == 1:
        jax.config.update("jax_cpu_enable_async_dispatch", parts[0] not in ("diffusers", "diffrax"))
        sys.exit(0 if PARTS[parts[0]](options.rounds) else 1)
    command = [sys.executable, __file__, "--rounds", str(options.rounds)]
    missed = [part for part in parts if subprocess.run([*command, part]).returncode]
    print(f"missed: {', '.join(missed)}" if missed else "every target met")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
