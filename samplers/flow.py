"""Drawing from a flow, and editing with its latents: all by the same face as every sampler's.

    (1)  x = f⁻¹(z),  z from the prior at temperature T                                   Glow 1807.03039 §6
    (2)  x = f⁻¹((1 − w)·f(a) + w·f(b)),  w from 0 to 1                                    between two images
    (3)  x = f⁻¹(f(a) + w·d),  d = E[f(x) | attribute] − E[f(x) | none]                    Glow §6, attributes
    (4)  x ← x + α_i·(g/√v + ξ) where x is not known,  g = ∇_x log p(x),  α_i = r/(100 + i),  ξ normal

r is the range of x and v a running mean of g². NICE (1410.8516 §5.2) has g for g/√v and 10 for r; but there the slope
of a pixel that is always black, e^s ≈ 1,000 times the others', throws x from one end to the other.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.flow import Flow, folded
from models.model import Condition, Model, Variables
from paths.path import expand
from samplers.diffusion import PRIOR
from samplers.sampler import Sampler, noise_of_steps
from samplers.solver import Samples

FORGETTING = 0.9  # of the running mean v of (4), a step


def _flow(model: Model, sampler: Sampler) -> Flow:
    if not isinstance(model, Flow):
        raise TypeError(f"{type(sampler).__name__} draws from a Flow, got {type(model).__name__}")
    return model


def _given(condition: Condition, names: tuple[str, ...], sampler: Sampler) -> tuple[Any, ...]:
    missing = [name for name in names if name not in (condition or {})]
    if missing:
        raise ValueError(f"{type(sampler).__name__} needs {' and '.join(missing)} in the condition, for each sample")
    return tuple((condition or {})[name] for name in names)


def _class(condition: Condition) -> Condition:
    return {"label": condition["label"]} if condition and "label" in condition else None


@dataclass(frozen=True, kw_only=True)
class FlowSampler(Sampler):
    """Eq. (1). Its trajectory is z and x."""

    UNIT: ClassVar[str] = "inverse pass"

    temperature: float = 1.0  # below 1: fewer oddities, less variety

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature={self.temperature} is negative")

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        flow = _flow(model, self)
        z = flow.latents(variables, folded(keys, PRIOR), shape, condition, self.temperature)
        x = flow.decode(variables, z, condition)
        return Samples(x, jnp.stack([z, x]) if trajectory else None)

    def network_calls(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Interpolation(Sampler):
    """Eq. (2). The condition has `start` and `end` [n, …] and `fraction` [n]."""

    UNIT: ClassVar[str] = "passes"

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        flow = _flow(model, self)
        start, end, fraction = _given(condition, ("start", "end", "fraction"), self)
        label, w = _class(condition), expand(fraction, start)
        a, b = (flow.encode(variables, keys, image, label, dequantize=False) for image in (start, end))
        x = flow.decode(variables, (1.0 - w) * a + w * b, label)
        return Samples(x, jnp.stack([start, x]) if trajectory else None)

    def network_calls(self) -> int:
        return 3


def attribute_direction(
    flow: Flow,
    variables: Variables,
    keys: Key[Array, " n"],
    x: Float[Array, "n *s"],
    has: Float[Array, " n"],
    condition: Condition = None,
) -> Float[Array, "*s"]:
    """d of eq. (3), from examples x that have the attribute (1) or have not (0)."""
    z = flow.encode(variables, keys, x, condition)
    weight = has / jnp.sum(has) - (1.0 - has) / jnp.sum(1.0 - has)
    return jnp.tensordot(weight, z, axes=1)


@dataclass(frozen=True, kw_only=True)
class AttributeEdit(Sampler):
    """Eq. (3). The condition has `image` and `direction` [n, …] and `strength` [n]."""

    UNIT: ClassVar[str] = "passes"

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        flow = _flow(model, self)
        image, direction, strength = _given(condition, ("image", "direction", "strength"), self)
        label = _class(condition)
        z = flow.encode(variables, keys, image, label, dequantize=False)
        x = flow.decode(variables, z + expand(strength, z) * direction, label)
        return Samples(x, jnp.stack([image, x]) if trajectory else None)

    def network_calls(self) -> int:
        return 2


@dataclass(frozen=True, kw_only=True)
class AscentInpainting(Sampler):
    """Eq. (4). The condition has `known` [n, …] and `mask` [n, …], 1 where a pixel is known.

    Steps are taken in the units that the flow was trained in, preprocessed data, and stay in the data's range.
    """

    UNIT: ClassVar[str] = "gradients"

    steps: int = 1000
    noise: float = 1.0  # of ξ: 0 climbs to a mode

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"inpainting needs at least one step, got steps={self.steps}")

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        flow = _flow(model, self)
        known, mask = _given(condition, ("known", "mask"), self)
        label = _class(condition)
        low, high = (flow.preprocessed(variables, jnp.full_like(known, end), label) for end in (-1.0, 1.0))
        fixed = flow.preprocessed(variables, known, label)
        mask = jnp.broadcast_to(mask, known.shape)
        first = low + (high - low) * jax.vmap(lambda key: jax.random.uniform(key, shape))(folded(keys, PRIOR))
        noise_of = noise_of_steps(keys, known)
        slope = jax.grad(lambda h: jnp.sum(flow.log_prob_of_preprocessed(variables, keys, h, label)))

        def step(carry: Any, i: Any) -> tuple[Any, Any]:
            h, v = carry
            g = slope(h)
            v = FORGETTING * v + (1.0 - FORGETTING) * g**2
            unit = g / jnp.sqrt(v / (1.0 - FORGETTING ** (i + 1.0)) + 1e-12)
            size = (high - low) / (100.0 + i)
            moved = jnp.clip(h + size * (unit + self.noise * noise_of(i)()), low, high)
            h = mask * fixed + (1.0 - mask) * moved
            return (h, v), h if trajectory else None

        start = mask * fixed + (1.0 - mask) * first
        (h, _), states = jax.lax.scan(step, (start, jnp.zeros_like(start)), jnp.arange(self.steps))
        back = lambda h: mask * known + (1.0 - mask) * flow.unprocessed(variables, h, label)  # noqa: E731
        return Samples(back(h), jax.vmap(back)(states) if trajectory else None)

    def network_calls(self) -> int:
        return self.steps
