"""The direct-ODE view, without an SDE: densities and trajectories of the heat equation (2010.02502 §4.3).

    (1)  p(x, σ) = data * N(0, σ²);  ∂p/∂(σ²/2) = ∂²p/∂x²                               the heat equation
    (2)  dx/dσ = −σ·∂ₓ log p(x, σ) carries p(·, σ) along: ∂p/∂σ = −∂ₓ(p·dx/dσ)          DDIM's ODE on VE

Rows hold how far DDIM's trajectories are from where the ODE really goes (ranks are kept on the line), and the largest
residual of (1) on a grid. Scales differ in the number of steps.
"""

from collections.abc import Iterator
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from paths.grids import Knots, between
from paths.schedules import VE
from reproductions.reproduction import Row, Source
from samplers.ddim import DDIM
from samplers.targets import LINE
from training.trained import Trained

SCALES = {"tiny": None, "small": None, "paper": None}
SOURCE = Source(paper="Denoising Diffusion Implicit Models", arxiv="2010.02502", equation="§4.3, eq. 14")
STEPS = {"tiny": 100, "small": 400, "paper": 2000}
SIZE = (10, 4.6)
PATH = VE(sigma_min=0.02, sigma_max=5.0)
RANKS = np.asarray([0.02, 0.08, 0.16, 0.24, 0.32, 0.4, 0.48, 0.56, 0.64, 0.72, 0.8, 0.88, 0.94, 0.985])


@lru_cache
def paths(steps: int) -> tuple[Knots, np.ndarray]:
    """Knots, and the solver's states [steps + 1, ranks] on the way from σ = 5 to 0.02."""
    knots = between(PATH, 1.0, 0.0, steps)
    with jax.enable_x64(True):
        x = jnp.asarray(LINE.quantile(PATH, RANKS, 1.0))[:, None]
        solved = DDIM().solve(LINE.denoise(PATH), PATH, knots, x, lambda i: lambda j=0: x, trajectory=True)
        return knots, np.asarray(solved.trajectory)[:, :, 0]


def residual() -> float:
    """Largest |∂p/∂(σ²/2) − ∂²p/∂x²| over the largest |∂²p/∂x²|, at σ = 0.3 on a grid of x."""

    def density(x: jax.Array, half_square: jax.Array) -> jax.Array:
        t = jnp.log(jnp.sqrt(2.0 * half_square) / PATH.sigma_min) / np.log(PATH.sigma_max / PATH.sigma_min)
        return jnp.exp(LINE.log_prob(PATH, x[None, None], t)[0])

    with jax.enable_x64(True):
        x, s = jnp.linspace(-3.0, 3.0, 201), jnp.asarray(0.045)
        in_time = jax.vmap(jax.grad(density, 1), (0, None))(x, s)
        in_space = jax.vmap(jax.grad(jax.grad(density)), (0, None))(x, s)
        return float(jnp.abs(in_time - in_space).max() / jnp.abs(in_space).max())


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    knots, states = paths(STEPS[scale])
    for i in np.linspace(0, knots.steps, 6).round().astype(int):
        exact = LINE.quantile(PATH, RANKS, float(knots.t[i]))
        error = float(np.abs(states[i] - exact).max())
        yield {"sigma": float(knots.sigma[i]), "steps_taken": int(i), "largest_error": error}
    yield {"sigma": 0.3, "heat_equation_residual": residual()}


def draw(rows: list[Row], figure: Figure) -> None:
    knots, states = paths(max(int(row.get("steps_taken", 0)) for row in rows))
    sigma = knots.sigma
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    x = np.linspace(-7.0, 7.0, 500)
    image = np.stack([_density(x, float(t)) for t in knots.t[:: max(1, knots.steps // 100)]], axis=1)
    levels = image / image.max(axis=0, keepdims=True)
    left.pcolormesh(sigma[:: max(1, knots.steps // 100)], x, levels, cmap="Blues", shading="gouraud")
    left.plot(sigma, states, color="tab:red", lw=0.9)
    left.set(xscale="log", xlabel="noise level σ", ylabel="x", ylim=(-7, 7))
    left.set_title("trajectories of dx/dσ = −σ ∂ₓlog p over p(x, σ), each column to its maximum", fontsize=9)
    left.invert_xaxis()
    for level in (5.0, 1.0, 0.5, 0.2, 0.02):
        t = np.log(level / PATH.sigma_min) / np.log(PATH.sigma_max / PATH.sigma_min)
        right.plot(x, _density(x, float(t)), label=f"σ = {level:g}")
    right.set(xlabel="x", ylabel="density p(x, σ)", xlim=(-4, 4), title="the heat equation run backwards")
    right.legend(fontsize=8)


def _density(x: np.ndarray, t: float) -> np.ndarray:
    return np.asarray(jnp.exp(LINE.log_prob(PATH, jnp.asarray(x)[:, None], jnp.asarray(t))))


def headline(rows: list[Row]) -> str:
    *states, heat = rows
    worst, steps = max(row["largest_error"] for row in states), max(row["steps_taken"] for row in states)
    residual = heat["heat_equation_residual"]
    return f"DDIM in {steps} steps is at most {worst:.1e} from the exact ODE; the heat equation holds to {residual:.0e}"
