"""Score SDE's figure: paths of the forward SDE, the reverse SDE and the ODE on a 1-D mixture (2011.13456 fig. 2).

The score is exact. The forward SDE is simulated by its transition xₜ = (α/α')x' + √(σ² − (α/α')²σ'²)·z, the reverse SDE
by Euler-Maruyama and the ODE by Heun. Rows compare the means and deviations at both ends with the exact ones.
"""

from collections.abc import Iterator
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from paths.grids import Uniform
from paths.schedules import VP
from reproductions.reproduction import Row, Source
from samplers.diffusion import solve
from samplers.heun import Heun
from samplers.reverse_sde import ReverseSDE
from samplers.sampler import sample_keys
from samplers.targets import LINE
from training.trained import Trained

SCALES = {"tiny": None, "small": None, "paper": None}
SOURCE = Source(
    paper="Score-Based Generative Modeling through Stochastic Differential Equations",
    arxiv="2011.13456",
    equation="eq. 5, 6 and 13, figure 2",
)
COUNT = {"tiny": 1000, "small": 10_000, "paper": 100_000}
STEPS, SHOWN = 500, 12
SIZE = (13, 4.2)
PATH = VP()
KNOTS = Uniform().knots(PATH, STEPS)


@lru_cache
def simulated(count: int) -> dict[str, np.ndarray]:
    """States [STEPS + 1, count] of the three processes, in the order in which each passes them."""
    D, keys = LINE.denoise(PATH), sample_keys(jax.random.key(0), jnp.arange(count))
    states = {}
    for name, solver in (("reverse SDE", ReverseSDE()), ("probability-flow ODE", Heun())):
        solved = jax.jit(lambda keys, solver=solver: solve(solver, D, PATH, KNOTS, keys, (1,), trajectory=True))(keys)
        assert solved.trajectory is not None
        states[name] = np.asarray(solved.trajectory)[:, :, 0]
    x = np.asarray(LINE.sample(jax.random.key(1), count))[:, 0]
    noise, forward = np.random.default_rng(0), [x]
    for i in range(STEPS, 0, -1):
        ratio = KNOTS.alpha[i - 1] / KNOTS.alpha[i]
        std = np.sqrt(KNOTS.sigma[i - 1] ** 2 - (ratio * KNOTS.sigma[i]) ** 2)
        forward.append(ratio * forward[-1] + std * noise.normal(size=count))
    return {"forward SDE": np.stack(forward)} | states


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for name, states in simulated(COUNT[scale]).items():
        data, end = (states[0], states[-1]) if name == "forward SDE" else (states[-1], states[0])
        for where, x, t in (("data", data, 0.0), ("noise", end, 1.0)):
            mean = PATH.alpha(t) * LINE.mean[0]
            std = np.sqrt(PATH.alpha(t) ** 2 * LINE.variance[0] + PATH.sigma(t) ** 2)
            yield {
                "process": name, "end": where, "samples": len(x), "mean": float(x.mean()), "exact_mean": float(mean),
                "std": float(x.std()), "exact_std": float(std),
            }  # fmt: skip


def draw(rows: list[Row], figure: Figure) -> None:
    x = np.linspace(-3.5, 3.5, 300)
    times = np.linspace(0.0, 1.0, 160)
    density = jax.vmap(lambda t: LINE.log_prob(PATH, jnp.asarray(x)[:, None], t))(jnp.asarray(times))
    levels = np.exp(np.asarray(density)).T
    levels /= levels.max(axis=0, keepdims=True)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (name, states) in zip(panels, simulated(rows[0]["samples"]).items(), strict=True):
        t = KNOTS.t[::-1] if name == "forward SDE" else KNOTS.t
        axes.pcolormesh(times, x, levels, cmap="Blues", shading="gouraud")
        axes.plot(t, states[:, :SHOWN], color="tab:red", lw=0.8, alpha=0.8)
        axes.set(title=f"{name}, VP", xlabel="t (0 data, 1 noise)", ylim=(-3.5, 3.5), xlim=(0, 1))
        if name != "forward SDE":
            axes.invert_xaxis()
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    panels[0].set(ylabel="x (density: each column to its maximum)")


def headline(rows: list[Row]) -> str:
    """At the end that each process comes to."""
    ends = [row for row in rows if row["end"] == ("noise" if row["process"] == "forward SDE" else "data")]
    told = (f"{row['process']} {row['std']:.3f} (exactly {row['exact_std']:.3f})" for row in ends)
    return f"standard deviation where each ends: {', '.join(told)}"
