"""Classifier-free guidance: what a class changes of the estimate, enlarged.

    (1)  x̂₀ ← D_c + (w − 1)·(D_c − D_∅),  w = 1 no guidance        2207.12598 eq. 6, whose weight is w − 1
    (2)  (1) for t in an interval, w = 1 outside it                  2404.07724
    (3)  x̂₀ ← φ·x̂₀·std(D_c)/std(x̂₀) + (1 − φ)·x̂₀                   2305.08891 eq. 15-16, std over a sample's numbers

Guidance is stated on scores or ε in the papers; both are affine in x̂₀ with coefficients of t alone, so that (1) is the
same in all of them. (3) is not: it is taken on x̂₀, the quantity whose contrast it is meant to keep.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models.denoiser import Denoise
from models.model import NULL_LABEL
from paths.path import expand
from samplers.transforms import Network, Transform


def check_interval(interval: tuple[float, float]) -> None:
    """Raises a ValueError where an interval of times is not one within [0, 1]."""
    low, high = interval
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"the guidance interval ({low:g}, {high:g}) must be two rising times within 0 and 1")


def within(interval: tuple[float, float], t: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether times are inside the interval, its ends included."""
    return (t >= interval[0]) & (t <= interval[1])


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Transform):
    """Away from the estimate without a class: the network is asked twice, in one doubled batch."""

    scale: float  # w; 1 is no guidance
    interval: tuple[float, float] = (0.0, 1.0)  # times at which to guide
    rescale: float = 0.0  # φ: how far each sample's contrast is brought back to that of the unguided estimate

    def __post_init__(self) -> None:
        check_interval(self.interval)
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance rescale={self.rescale:g} is not in [0, 1]")

    def calls(self, inner: int) -> int:
        return inner if self.scale == 1.0 else 2 * inner

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        if denoise is not network:
            raise ValueError("classifier_free must be the first of the transforms: it asks the network itself twice")
        if not network.model.num_classes:
            raise ValueError("classifier_free needs a class-conditional network; this one has no null class")
        condition = network.condition or {}
        if "label" not in condition:
            raise ValueError("classifier_free needs condition['label'], the class to guide to; there is none")
        if self.scale == 1.0:
            return denoise
        # Each sample stands beside its double, so that a batch split over devices stays where it is.
        doubled = {name: jnp.repeat(value, 2, axis=0) for name, value in condition.items()}
        doubled["label"] = doubled["label"].at[1::2].set(NULL_LABEL)
        both = network.under(doubled)

        def guided(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            times = jnp.broadcast_to(t, x.shape[:1])
            answers = both(jnp.repeat(x, 2, axis=0), jnp.repeat(times, 2)).reshape(x.shape[0], 2, *x.shape[1:])
            with_class, without = answers[:, 0], answers[:, 1]
            weight = jnp.where(within(self.interval, times), self.scale - 1.0, 0.0)
            result = with_class + expand(weight, x) * (with_class - without)
            return rescaled(result, with_class, self.rescale) if self.rescale else result

        return guided


def rescaled(x0: Float[Array, "n *s"], like: Float[Array, "n *s"], share: float) -> Float[Array, "n *s"]:
    """Eq. (3): x0 with that share of its standard deviation brought to that of `like`, sample by sample."""
    axes = tuple(range(1, x0.ndim))
    std, wanted = (jnp.std(value, axis=axes, keepdims=True) for value in (x0, like))
    ratio = jnp.where(std > 0.0, wanted / jnp.where(std > 0.0, std, 1.0), 1.0)
    return share * ratio * x0 + (1.0 - share) * x0
