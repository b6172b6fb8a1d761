"""The contract of a sampler: `(model, variables, keys[N], condition, shape) → samples[N, *shape]`.

One key a sample: what comes out for a key depends neither on the batch it was in nor on the number of devices.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Int, Key

from models.model import Condition, Model, Variables
from samplers.solver import Noise, NoiseOfStep, Samples


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Base of all samplers."""

    UNIT: ClassVar[str] = "network calls"  # what `network_calls` counts

    @abstractmethod
    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        """Draws one sample of `shape` for each key; pure, to be jitted by the caller."""

    @abstractmethod
    def network_calls(self) -> int | None:
        """How many of UNIT one sample takes; None if it differs from sample to sample (`Samples.nfe` then has it)."""


@dataclass(frozen=True, kw_only=True)
class NoSampler(Sampler):
    """For models that draw nothing (embedders, classifiers)."""

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        raise ValueError(f"{type(model).__name__} draws no samples")

    def network_calls(self) -> int:
        return 0


def sample_keys(key: Key[Array, ""], indices: Int[Array, " n"]) -> Key[Array, " n"]:
    """Key of each sample, from its number in the run alone."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def noise_of_steps(keys: Key[Array, " n"], x: Float[Array, "n *s"]) -> NoiseOfStep:
    """The noise of each step, from its number and the sample's key: `noise_of_steps(keys, x)(i)(j)` is like x."""

    def of_step(index: Any) -> Noise:
        step = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)

        def noise(j: int = 0) -> Float[Array, "n *s"]:
            return normal_like(jax.vmap(lambda key: jax.random.fold_in(key, j))(step) if j else step, x)

        return noise

    return of_step


def normal_like(keys: Key[Array, " n"], x: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
    """Standard normal noise, each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
