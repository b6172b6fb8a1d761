"""A network, the path it was trained on and what it says: everything a loss or a sampler needs to know of a diffusion.

Path and prediction are stated here once. x̂₀, ε̂, the score and the velocity all follow from the one network call
through the face's row (paths/predictions.py, eq. 1-4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.model import Batch, Condition, Model, Net, Variables, label_of
from paths.path import Path, expand
from paths.predictions import Face, Prediction, face, latest_time

# (x, t) → x̂₀; t is one for all, or one a sample under an adaptive solver
Denoise = Callable[[Float[Array, "b *s"], Float[Array, "..."]], Float[Array, "b *s"]]


@dataclass(frozen=True, kw_only=True)
class Denoiser(Model):
    """A denoising network on a path."""

    net: Net
    path: Path
    predicts: Prediction = "eps"  # what the network says, a row of paths/predictions.py
    sigma_data: float = 0.5  # standard deviation of the data; the edm face only

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        x = batch["x"]
        t = jnp.full(x.shape[:1], 0.5)
        return {"params": self.net.init(key, x, t, batch.get("label"))["params"], "state": {}}

    def face(self, t: Float[Array, " b"]) -> Face:
        """c_in, c_noise, c_skip, c_out and the target's p, q at times t."""
        return face(self.predicts, self.path, t, self.sigma_data)

    def raw(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        condition: Condition = None,
        dropout: Key[Array, ""] | None = None,
    ) -> Float[Array, "b *s"]:
        """F, the network's own output at xₜ = x. Pass a `dropout` key while training, none otherwise."""
        row = self.face(t)
        return self.network(variables, expand(row.c_in, x) * x, row.c_noise, condition, dropout)

    def network(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        noise: Float[Array, " b"],
        condition: Condition,
        dropout: Key[Array, ""] | None,
        interval: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b *s"]:
        """The net on what it takes: x scaled, the noise level as a number, and for a `Jump` how far it jumps."""
        only_jumps: Any = {} if interval is None else {"interval": interval}  # other nets need not know of it
        output: Any = self.net.apply(
            {"params": variables["params"]},
            x,
            noise,
            label_of(condition),
            train=dropout is not None,
            rngs={"dropout": dropout} if dropout is not None else None,
            **only_jumps,
        )
        return output

    def target(
        self, x0: Float[Array, "b *s"], eps: Float[Array, "b *s"], t: Float[Array, " b"]
    ) -> Float[Array, "b *s"]:
        """y = p·x₀ + q·ε, what F is regressed on."""
        row = self.face(t)
        return expand(row.p, x0) * x0 + expand(row.q, x0) * eps

    def denoise(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        condition: Condition = None,
    ) -> Float[Array, "b *s"]:
        """x̂₀ = E[x₀ | xₜ = x], eq. (3)."""
        row = self.face(t)
        return expand(row.c_skip, x) * x + expand(row.c_out, x) * self.raw(variables, x, t, condition)

    def velocity(
        self,
        variables: Variables,
        x: Float[Array, "b *s"],
        t: Float[Array, " b"],
        condition: Condition = None,
    ) -> Float[Array, "b *s"]:
        """dx/dt = α̇·x̂₀ + σ̇·ε̂ of the probability-flow ODE (paths/path.py, eq. 4)."""
        x0 = self.denoise(variables, x, t, condition)
        alpha_dot, sigma_dot = self.path.derivatives(t)
        eps = (x - expand(self.path.alpha(t), x) * x0) / expand(self.path.sigma(t), x)
        return expand(alpha_dot, x) * x0 + expand(sigma_dot, x) * eps

    @property
    def t_max(self) -> float:
        """The largest t at which the network may be asked for x̂₀."""
        return latest_time(self.predicts, self.path)

    @property
    def num_classes(self) -> int:
        """How many classes the network is conditioned on; 0 if none."""
        return getattr(self.net, "num_classes", 0)
