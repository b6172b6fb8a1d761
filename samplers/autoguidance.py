"""Guidance away from a weaker model's estimate: a shorter run, a smaller network, or both.

    (1)  x̂₀ ← D_weak + w·(D − D_weak),  w = 1 no guidance                        2406.02507
    (2)  (1) for t in an interval, w = 1 outside it                               2404.07724

Both models see the same class. The weak one's variables lie in `variables["weak"]`, beside the model's own.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.denoiser import Denoise, Denoiser
from models.model import label_of
from paths.path import expand
from samplers.guidance import check_interval, within
from samplers.transforms import Network, Transform


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Transform):
    """Away from the estimate of a weaker model on the same path."""

    scale: float  # w; 1 is no guidance
    weak: Denoiser  # the weaker model
    interval: tuple[float, float] = (0.0, 1.0)  # times at which to guide

    def __post_init__(self) -> None:
        check_interval(self.interval)

    def calls(self, inner: int) -> int:
        return inner if self.scale == 1.0 else inner + 1

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        model, classes = network.model, self.weak.num_classes
        if self.weak.path != model.path:
            raise ValueError(f"autoguidance: the weak model's path is {self.weak.path}, the model's {model.path}")
        if classes not in (0, model.num_classes):
            raise ValueError(f"autoguidance: the weak model has {classes} classes, the model {model.num_classes}")
        if "weak" not in network.variables:
            raise ValueError("autoguidance needs the weak model's variables under variables['weak']; there are none")
        if self.scale == 1.0:
            return denoise
        label = label_of(network.condition) if classes else None
        condition = None if label is None else {"label": label}
        weak = Network(model=self.weak, variables=network.variables["weak"], condition=condition)
        latest = self.weak.t_max

        def guided(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            strong, times = denoise(x, t), jnp.broadcast_to(t, x.shape[:1])
            # A face that says nothing at pure noise is asked a little earlier, and what it says is not used.
            less = weak(x, jnp.minimum(times, latest))
            inside = within(self.interval, times) & (times <= latest)
            return jnp.where(expand(inside.astype(x.dtype), x) > 0.0, less + self.scale * (strong - less), strong)

        return guided
