"""Log-likelihood of a diffusion by the change of variables along its probability-flow ODE.

With u(x, t) = dx/dt of the ODE (paths/path.py, eq. 4), from data at t_min to noise at t_max:

    (1)  log p(x) = log N(x(t_max); 0, σ(t_max)²I) + ∫ tr ∂u/∂x(x(t), t) dt            2011.13456 eq. 39, app. D.2
    (2)  dx/dw = dx/dt·dt/dw,  w of paths/clock.py: what time is measured in while (1) is solved
    (3)  bits/dim = (−log p(x) − D·log Δ)/(D·log 2),  Δ the width of a data bin
    (4)  x ← x + Δ·(u − ½),  u uniform on [0, 1)^D                      uniform dequantisation

log p in nats, in the units of x. What (1) gives is the density at t_min, of data with noise σ(t_min) left in it: most
paths' u has no limit where σ is 0. The trace is that of models/trace.py, its vectors drawn once a solve, so that one
smooth field is integrated and the estimate of log p is unbiased. With (4), bits/dim bounds the discrete data's own from
above (Theis et al. 1511.01844 eq. 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from metrics.examples import OverExamples, condition_of, denoiser, is_conditional, mean_and_error, named
from metrics.metric import Evaluation
from models.flows.dequantization import dequantize
from models.model import Condition
from models.ode import Integrator
from models.trace import Hutchinson, Trace
from paths.clock import Clock
from paths.path import Path
from samplers.integrators import Adaptive

# (x, t, condition) → dx/dt, as `partial(model.velocity, variables)`
Velocity = Callable[[Float[Array, "b *s"], Float[Array, " b"], Condition], Float[Array, "b *s"]]


def probability_flow_log_prob(
    velocity: Velocity,
    path: Path,
    x: Float[Array, "b *s"],
    keys: Key[Array, " b"],
    integrator: Integrator,
    trace: Trace,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Condition = None,
) -> tuple[Float[Array, " b"], Int[Array, " b"]]:
    """Log-density of each example under (1), and what it cost.

    Each example is a solve of its own, with its own noise and its own steps: nothing depends on the batch.

    Args:
      velocity: u, called with one example at a time.
      keys: one an example; Hutchinson's noise comes from it alone.
      t_min, t_max: where to take the density and where the prior holds; the path's own by default. For a network that
        cannot be asked at the path's end pass its `t_max`.
      condition: arrays [b], such as labels; log p is then given them.

    Returns:
      log p [b] in nats, NaN where an adaptive integrator did not arrive; and nfe [b], evaluations of u. With each goes
      a product of its Jacobian with every vector of `trace`.

    Raises:
      ValueError: σ(t_min) is 0, or t_min is not below t_max.
    """
    t_min = path.t_min if t_min is None else t_min
    t_max = path.t_max if t_max is None else t_max
    if not t_min < t_max or float(path.sigma(t_min)) <= 0:
        raise ValueError(f"log p needs t_min < t_max and some noise at t_min; {path} has none at t_min={t_min:g}")
    clock = Clock(path, t_min, t_max)
    variance = float(path.sigma(t_max)) ** 2

    def one(x: Float[Array, "*s"], key: Key[Array, ""], condition: Condition) -> Any:
        vectors = trace.vectors(key, x)
        alone = jax.tree.map(lambda leaf: leaf[None], condition)

        def augmented(w: Float[Array, ""], state: Any) -> Any:
            t, rate = clock.time(w)
            u, push = jax.linearize(lambda z: rate * velocity(z[None], t[None], alone)[0], state[0])
            return u, jnp.sum(vectors * jax.vmap(push)(vectors))

        start = (x, jnp.zeros((), x.dtype))
        (z, change), nfe, _ = integrator(augmented, start, clock.first, clock.last, longest=1.0)  # an e-fold of σ/α
        return -0.5 * (jnp.sum(z**2) / variance + x.size * math.log(2.0 * math.pi * variance)) + change, nfe

    return jax.vmap(one)(x, keys, condition)


def bits_per_dim(log_prob: Any, dims: int, bin_width: float) -> Any:
    """Eq. (3). Δ is the distance between neighbouring levels of x: 2/(n − 1) for n levels from −1 to 1.

    Args:
      log_prob: in nats, of a density in x's units; any shape.
      dims: D.
      bin_width: Δ. A factor of 2 in it is 1 bit/dim.

    Raises:
      ValueError: the width is not positive.
    """
    if not bin_width > 0:
        raise ValueError(f"bits/dim needs the positive width of a data bin, got {bin_width}")
    return (-log_prob - dims * math.log(bin_width)) / (dims * math.log(2.0))


@dataclass(frozen=True, kw_only=True)
class Likelihood(OverExamples):
    """Bits/dim of held-out data by the probability-flow ODE; nats (`nll`) where the data is continuous.

    Discrete data is dequantised, one draw an example. A class-conditional model is given each example's own class where
    the data has one.
    """

    integrator: Integrator = field(default_factory=Adaptive)
    trace: Trace = field(default_factory=Hutchinson)
    t_min: float | None = None  # where the density is taken; the path's own by default

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = denoiser(evaluation.model, "the likelihood")
        width = evaluation.data.bin_width

        def log_prob(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            noise_keys, probe_keys = (jax.vmap(lambda key: jax.random.fold_in(key, i))(keys) for i in (0, 1))  # noqa: B023
            x = batch["x"] if width is None else dequantize(noise_keys, batch["x"], width)
            velocity = partial(model.velocity, variables)
            return probability_flow_log_prob(
                *(velocity, model.path, x, probe_keys, self.integrator, self.trace),
                t_min=self.t_min,
                t_max=model.t_max,
                condition=condition_of(model, batch),
            )

        arrays = evaluation.data.arrays(self.split, self.examples)
        values, nfe = self.over(log_prob, evaluation, arrays)
        lost = int(np.sum(~np.isfinite(values)))
        if lost:
            raise ValueError(
                f"{lost} of {len(values)} solves gave no finite density with {self.integrator}: raise its max_steps, "
                "loosen its tolerances, or look at the network"
            )
        if width is None:
            numbers = mean_and_error("nll", -values)
        else:
            numbers = mean_and_error("bits_per_dim", bits_per_dim(values, arrays["x"][0].size, width))
        numbers["likelihood_nfe"] = float(np.mean(nfe))
        return named(numbers, self.split, is_conditional(model, arrays))
