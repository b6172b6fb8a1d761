"""A network that jumps along the probability-flow ODE, from any time t to any earlier time s, in one call.

    (1)  x_s ≈ J(xₜ, t, s) = α_s·x̂₀ + σ_s/σₜ·(xₜ − αₜ·x̂₀),   x̂₀ = c_skip·xₜ + c_out·F(xₜ, t, s),  σ_0 = 0
    (2)  on the rectified path with the velocity face (1) is xₜ − (t − s)·F: F is the mean velocity from s to t,
         F = 1/(t−s)·∫ₛᵗ u(x_τ, τ) dτ                                        MeanFlow, 2505.13447 eq. 3
    (3)  J(x, t, t) = x for every F, and F(x, t, t) is an ordinary `Denoiser`'s output at t
    (4)  J(x, t, 0) = x̂₀: a consistency function, 2303.01469 §3; s = 0 is clean data on every path

(1) is the form of consistency trajectory models (2310.02279 eq. 9), here on every path. MeanFlow and shortcut models
learn all (t, s); consistency models s = 0 alone, and know nothing of other jumps.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.denoiser import Denoiser
from models.model import Batch, Condition, Variables
from paths.path import expand

# Times are differentiated (MeanFlow) or moved by little (consistency): the embedding of DDPM's 1000·t, whose fastest
# wave has 160 periods, would make F rough in t. Ten radians over the path are few enough.
SLOWER = 0.01


@dataclass(frozen=True, kw_only=True)
class Jump(Denoiser):
    """Eq. (1). With s = t, its default, it is a `Denoiser` and can be drawn from and measured as one.

    For distillation, `teacher` is the model that is distilled; its parameters lie in `variables["state"]["teacher"]`,
    where `train.py --teacher RUN` puts those of a finished run.
    """

    teacher: Denoiser | None = None

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        x = batch["x"]
        half = jnp.full(x.shape[:1], 0.5)
        params = self.net.init(key, x, half, batch.get("label"), interval=half)["params"]
        teacher = {} if self.teacher is None else {"teacher": self.teacher.init(key, batch)["params"]}
        return {"params": params, "state": teacher}

    def raw(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        condition: Condition = None,
        dropout: Key[Array, ""] | None = None,
        s: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b *s"]:
        """F(x, t, s)."""
        row = self.face(t)
        scale = 1.0 if self.predicts == "edm" else SLOWER
        noise = scale * row.c_noise
        # Never below t_min: EDM's c_noise is the logarithm of a noise that may be 0 at s = 0.
        interval = noise if s is None else scale * self.face(jnp.maximum(s, self.path.t_min)).c_noise
        interval = noise - interval
        return self.network(variables, expand(row.c_in, x) * x, noise, condition, dropout, interval)

    def data(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        s: Float[Array, " b"],
        condition: Condition = None,
        dropout: Key[Array, ""] | None = None,
    ) -> Float[Array, "b *s"]:
        """x̂₀ of (1): where a line through the jump's ends meets data."""
        row = self.face(t)
        return expand(row.c_skip, x) * x + expand(row.c_out, x) * self.raw(variables, x, t, condition, dropout, s)

    def jump(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        s: Float[Array, " b"],
        condition: Condition = None,
    ) -> Float[Array, "b *s"]:
        """J(x, t, s), t > s ≥ 0."""
        x0 = self.data(variables, x, t, s, condition)
        ratio = jnp.where(s > 0.0, self.path.sigma(s), 0.0) / self.path.sigma(t)
        return expand(self.path.alpha(s) - ratio * self.path.alpha(t), x) * x0 + expand(ratio, x) * x
