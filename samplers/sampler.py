"""The contract of a sampler: `(model, variables, keys[N], condition, shape) → samples[N, *shape]`.

One key a sample: what comes out for a key depends neither on the batch it was in nor on the number of devices.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from models.model import Condition, Model, Variables


class Samples(NamedTuple):
    """What a sampler returns."""

    x: Float[Array, "n *s"]
    trajectory: Float[Array, "steps n *s"] | None = None  # every state from noise to data, only when asked for


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Base of all samplers."""

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
    def network_calls(self) -> int:
        """Network calls for one sample."""


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


def normal_like(keys: Key[Array, " n"], x: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
    """Standard normal noise, each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
