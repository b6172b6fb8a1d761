"""Consistency models: two neighbouring points of one trajectory have one end (2303.01469; improved, 2310.14189).

    (1)  f(x, t) = J(x, t, 0), the jump onto data (models/jump.py, eq. 4);  f(x, t_min) = x up to O(σ(t_min)) by the
         form of its face: c_skip → 1 and c_out → 0, for all faces but x0, which is refused: f = 0 would be at rest
    (2)  L = w·d(f(xₜ, t), sg[f(x_s, s)])/√D over neighbours t > s of a grid of N(k) intervals
    (3)  training:      x_s = α_s·x₀ + σ_s·ε with the x₀ and ε of xₜ               2303.01469 eq. 10, theorem 2
    (4)  distillation:  x_s one Heun step of the teacher's ODE from xₜ             2303.01469 eq. 6-7
    (5)  d = √(‖·‖² + c²) − c,  c = 0.00054·√D, pseudo-Huber                       2310.14189 §3.3
         (both terms of the root grow with D, so d/√D does not depend on it)
    (6)  N(k) = min(N₀·2^⌊k/K'⌋, N₁), K' a setting, the paper's being ⌊K/(log₂(N₁/N₀) + 1)⌋ of K steps in all;
         w = 1/(t − s)                                                             2310.14189 §3.4 and table 1

The grid is even in the path's own t between t_min and t_max, and its intervals are drawn evenly: on a path whose t is
an even measure of noise (rectified, cosine) this is a choice of ours where the paper has EDM's σ.
"""

from abc import abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from losses.loss import Loss, Objective, every_class
from models.denoiser import Denoiser
from models.jump import Jump
from models.model import Batch, Condition, Model, Variables
from paths.path import expand


@dataclass(frozen=True, kw_only=True)
class Consistency(Loss):
    """Base of the two: eq. (2), (5) and (6)."""

    first: int = 10  # N₀, intervals of the grid at the start
    last: int = 160  # N₁, intervals in the end
    doubling: int = 1000  # K', steps between doublings
    huber: float = 0.00054  # c over √D

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.last or self.doubling < 1 or self.huber <= 0:
            raise ValueError(f"{self}: needs 2 <= first <= last, doubling at least 1 and huber above 0")

    def intervals(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """N(k) of (6)."""
        return jnp.minimum(self.first * 2.0 ** (step // self.doubling), float(self.last))

    @abstractmethod
    def earlier(
        self, model: Jump, variables: Variables, x0: Array, eps: Array, xt: Array, t: Array, s: Array, c: Condition
    ) -> Float[Array, "b *s"]:
        """x_s, on the trajectory of xₜ."""

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, Jump):
            raise ValueError(f"consistency models are Jumps, got {type(model).__name__}")
        if model.predicts == "x0":
            raise ValueError(
                "a consistency model is the identity at t_min: let it predict velocity, v, edm or eps, not x0"
            )
        interval_key, noise_key, dropout_key = jax.random.split(key, 3)
        x0, path = batch["x"], model.path
        first, length = path.t_min, model.t_max - path.t_min
        n = self.intervals(step)
        index = jnp.floor(jax.random.uniform(interval_key, x0.shape[:1]) * n)
        s, t = first + length * index / n, first + length * (index + 1.0) / n
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        xt = path.interpolate(x0, eps, t)
        condition = every_class(batch)
        zero = jnp.zeros_like(t)
        xs = self.earlier(model, variables, x0, eps, xt, t, s, condition)
        # The same dropout on both sides, so that what differs is the point alone.
        end = model.data(variables, xt, t, zero, condition, dropout_key)
        target = jax.lax.stop_gradient(model.data(variables, xs, s, zero, condition, dropout_key))
        squared = jnp.sum((end - target).astype(jnp.float32) ** 2, axis=tuple(range(1, x0.ndim)))
        dims = float(np.prod(x0.shape[1:]))
        c = self.huber * dims**0.5
        distance = (jnp.sqrt(squared + c**2) - c) / dims**0.5
        return Objective(n / length * distance, {"distance": distance}, variables["state"])


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(Consistency):
    """Eq. (3): no teacher."""

    def earlier(
        self, model: Jump, variables: Variables, x0: Array, eps: Array, xt: Array, t: Array, s: Array, c: Condition
    ) -> Float[Array, "b *s"]:
        return model.path.interpolate(x0, eps, s)


@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(Consistency):
    """Eq. (4): `model.teacher` with the parameters of the run that `--teacher` names."""

    def earlier(
        self, model: Jump, variables: Variables, x0: Array, eps: Array, xt: Array, t: Array, s: Array, c: Condition
    ) -> Float[Array, "b *s"]:
        if model.teacher is None or model.teacher.path != model.path:
            raise ValueError("consistency distillation needs model.teacher, on the model's own path, and --teacher RUN")
        if model.teacher.t_max < model.t_max:
            raise ValueError(
                f"the teacher predicts {model.teacher.predicts} and cannot be asked above t={model.teacher.t_max:.4f}, "
                f"where the model begins, t={model.t_max:g}: distil into a model of the same face"
            )
        held = {"params": variables["state"]["teacher"], "state": {}}
        return heun_step(model.teacher, held, xt, t, s, c)


def heun_step(
    teacher: Denoiser, variables: Variables, x: Array, t: Array, s: Array, condition: Condition
) -> Float[Array, "b *s"]:
    """Heun's step from t to s of d(x/σ) = x̂₀·d(α/σ), the probability-flow ODE in a form that is finite where α = 0."""
    path = teacher.path
    ratio = path.sigma(s) / path.sigma(t)

    def moved(x0: Array) -> Array:
        return expand(ratio, x) * x + expand(path.alpha(s) - ratio * path.alpha(t), x) * x0

    first = teacher.denoise(variables, x, t, condition)
    second = teacher.denoise(variables, moved(first), s, condition)
    return moved(0.5 * (first + second))
