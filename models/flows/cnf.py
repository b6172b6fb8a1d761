"""Continuous flows: FFJORD, Grathwohl et al. 1810.01367; regularised as RNODE, Finlay et al. 2002.02798.

    (1)  z = x(1),  dx/dt = f(x, t),  x(0) = x;  f(x, t) = net(x, time_scale·t, label)
    (2)  log|det ∂z/∂x| = ∫₀¹ tr ∂f/∂x(x(t), t) dt                              1810.01367 §2.2
    (3)  x = f⁻¹(z):  the same from 1 to 0
    (4)  K = ∫₀¹ ‖f(x(t), t)‖² dt / D                                           kinetic energy, 2002.02798
    (5)  J = ∫₀¹ ‖∂f/∂x(x(t), t)‖_F² dt / D                                     Jacobian energy, 2002.02798

Trace and Frobenius norm are of the same products (∂f/∂x)·v, models/trace.py. The papers take vᵀ∂f/∂x, by a backward
pass through the net; both ways estimate both without bias, here a likelihood's gradient is reverse over forward.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.flows.bijection import Bijection, Moved, Params
from models.model import Condition, Net, label_of
from models.ode import Integrator, Solution
from models.trace import Exact, Trace

# So few vectors are taken one by one: the gradient of a kernel is then one matrix product, not a product over two axes
# (examples and vectors), for which XLA's CPU backend has no fast form in a loop.
FEW = 4


@dataclass(frozen=True, kw_only=True)
class CNF(Bijection):
    """Eq. (1). Each example is a solve of its own, with its own steps, its own noise: nothing depends on the batch.

    Of a condition it sees `label` [B], if the net has classes, and `keys` [B]: the vectors of a random trace, drawn
    once a solve, come from the example's key alone. `pull` takes no trace and so needs no keys; without them all else
    but `init` raises ValueError if the trace is random. An example is NaN where an adaptive solve did not arrive.

    Nets embed what they are told of time in waves (models/embedding.py), of which the fastest turns time_scale/2π times
    on the way. At 1000, the scale of diffusion's steps, that is 160 times: a few fixed steps would step over them, and
    their density be that of no ODE.
    """

    net: Net  # of f
    integrator: Integrator
    trace: Trace = field(default_factory=Exact)
    time_scale: float = 10.0  # what the net is told where t is 1
    remat: str | None = None  # gradient checkpointing of a fixed integrator's steps, models/remat.py

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        return self.net.init(key, x, jnp.zeros(x.shape[:1], x.dtype), self._label(condition))["params"]

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.between(params, x, 0.0, 1.0, condition)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        return self.between(params, z, 1.0, 0.0, condition)

    def between(self, params: Params, x: Float[Array, "b *s"], t0: Any, t1: Any, condition: Condition = None) -> Moved:
        """x(t1) from x(t0) = x, and log|det ∂x(t1)/∂x(t0)|; either way, times 0 (data) to 1."""
        state = self._solve(params, x, condition, t0, t1).y
        return state["x"], state["logdet"]

    def pull(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Float[Array, "b *s"]:
        def one(z: Float[Array, "*s"], label: Int[Array, ""] | None) -> Any:
            return self.integrator(lambda t, x: self._field(params, x, t, label), z, 1.0, 0.0, remat=self.remat).y

        return jax.vmap(one)(_wide(z), self._label(condition))

    def observe(
        self, params: Params, x: Float[Array, "b *s"], condition: Condition = None
    ) -> tuple[Float[Array, "b *s"], Float[Array, " b"], dict[str, Float[Array, "..."]]]:
        """`forward`, and [B] each: `nfe`, calls of the net; `kinetic_energy`, eq. (4); `jacobian_energy`, eq. (5).

        The energies are integrated in the same solve: an adaptive integrator minds their error too.
        """
        state, nfe, _ = self._solve(params, x, condition, 0.0, 1.0, energies=True)
        energies = {name: state[name] for name in ("kinetic_energy", "jacobian_energy")}
        return state["x"], state["logdet"], {"nfe": nfe.astype(jnp.float32), **energies}

    def _solve(
        self,
        params: Params,
        x: Float[Array, "b *s"],
        condition: Condition,
        t0: Any,
        t1: Any,
        energies: bool = False,
    ) -> Solution:
        """Eq. (1), (2) and, if asked, (4), (5) from t0 to t1."""

        def one(x: Float[Array, "*s"], key: Key[Array, ""] | None, label: Int[Array, ""] | None) -> Solution:
            vectors = self.trace.vectors(key, x)

            def augmented(t: Float[Array, ""], state: Any) -> Any:
                f = lambda x: self._field(params, x, t, label)  # noqa: E731
                # Linearised: the net is called once, whatever it is pushed along.
                u, push = jax.linearize(f, state["x"])
                few = len(vectors) <= FEW
                products = jnp.stack([push(v) for v in vectors]) if few else jax.vmap(push)(vectors)
                slopes = {"x": u, "logdet": jnp.sum(vectors * products)}
                if energies:
                    slopes["kinetic_energy"] = jnp.sum(u**2) / x.size
                    slopes["jacobian_energy"] = jnp.sum(products**2) / x.size
                return slopes

            names = ("logdet", "kinetic_energy", "jacobian_energy") if energies else ("logdet",)
            return self.integrator(
                augmented, {"x": x} | dict.fromkeys(names, jnp.zeros((), x.dtype)), t0, t1, remat=self.remat
            )

        return jax.vmap(one)(_wide(x), (condition or {}).get("keys"), self._label(condition))

    def _field(
        self, params: Params, x: Float[Array, "*s"], t: Float[Array, ""], label: Int[Array, ""] | None
    ) -> Float[Array, "*s"]:
        """f of one example."""
        label = None if label is None else label[None]
        u: Any = self.net.apply({"params": params}, x[None], self.time_scale * t[None], label)
        return u[0].astype(x.dtype)

    def _label(self, condition: Condition) -> Int[Array, " b"] | None:
        return label_of(condition) if getattr(self.net, "num_classes", 0) else None


def _wide(x: Float[Array, "b *s"]) -> Float[Array, "b *s"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
