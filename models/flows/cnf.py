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

from models.flows.bijection import Bijection, Moved, Params, zeros
from models.model import Condition, Net, label_of, wide
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
    remat: str | None = None  # gradient checkpointing of equal steps, models/remat.py

    @property
    def is_chain(self) -> bool:
        """Whether `remat` is of its own steps: an integrator that chooses them leaves it to the net."""
        return self.integrator.equal_steps

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
        field = lambda t, x, label: self._field(params, x, t, label)  # noqa: E731
        return self._integrated(field, wide(z), (self._label(condition),), 1.0, 0.0).y

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

        def augmented(t: Float[Array, ""], state: Any, vectors: Any, label: Any) -> Any:
            f = lambda x: self._field(params, x, t, label)  # noqa: E731
            # Linearised: the net is called once, whatever it is pushed along.
            u, push = jax.linearize(f, state["x"])
            few = len(vectors) <= FEW
            products = jnp.stack([push(v) for v in vectors]) if few else jax.vmap(push)(vectors)
            slopes = {"x": u, "logdet": jnp.sum(vectors * products)}
            if energies:
                slopes["kinetic_energy"] = jnp.sum(u**2) / u.size
                slopes["jacobian_energy"] = jnp.sum(products**2) / u.size
            return slopes

        x = wide(x)
        vectors = jax.vmap(self.trace.vectors)((condition or {}).get("keys"), x)
        names = ("logdet", "kinetic_energy", "jacobian_energy") if energies else ("logdet",)
        start = {"x": x} | dict.fromkeys(names, zeros(x))
        return self._integrated(augmented, start, (vectors, self._label(condition)), t0, t1)

    def _integrated(self, field: Any, start: Any, told: Any, t0: Any, t1: Any) -> Solution:
        """Of every example, field(t, state, *told): steps that are equal are taken by all together, others by each."""
        if not self.integrator.equal_steps:
            one = lambda state, told: self.integrator(lambda t, y: field(t, y, *told), state, t0, t1)  # noqa: E731
            return jax.vmap(one)(start, told)
        # Not under vmap: a plan of models/revolve.py would hold the gradient of the parameters for each example.
        every = lambda t, y: jax.vmap(lambda y, told: field(t, y, *told))(y, told)  # noqa: E731
        y, nfe, _ = self.integrator(every, start, t0, t1, remat=self.remat)
        return Solution(y, jnp.full(jax.tree.leaves(y)[0].shape[:1], nfe))

    def _field(
        self, params: Params, x: Float[Array, "*s"], t: Float[Array, ""], label: Int[Array, ""] | None
    ) -> Float[Array, "*s"]:
        """f of one example."""
        label = None if label is None else label[None]
        u: Any = self.net.apply({"params": params}, x[None], self.time_scale * t[None], label)
        return u[0].astype(x.dtype)

    def _label(self, condition: Condition) -> Int[Array, " b"] | None:
        return label_of(condition) if getattr(self.net, "num_classes", 0) else None
