"""Functions from a denoiser to a denoiser: what stands between the network and the solver.

They are composed in the order of `Diffusion.transforms`, the first innermost: what the solver sees is the last one's
result. A transformation is given the network beside the denoiser it transforms, for what it needs to ask under another
condition (guidance) or to read from the condition (known pixels). The order that is meant:

    1. guidance by the network itself: classifier_free         must be first, for it asks the network for two answers
    2. guidance by something else: autoguidance, classifier_guidance, pigdm
    3. what bounds x̂₀: clip, dynamic_threshold
    4. what is known of x̂₀: ddnm                               last, so that nothing moves the known pixels again
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.denoiser import Denoise, Denoiser
from models.model import Condition, Variables


@dataclass(frozen=True, kw_only=True)
class Network:
    """The trained network as a `Denoise`, with all that it was bound to."""

    model: Denoiser
    variables: Variables  # besides params and state: `weak`, `classifier`, where guidance needs another run's
    condition: Condition  # arrays [n, …]: `label`, and what is known of each sample (samplers/operators.py)

    def __call__(self, x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
        return self.model.denoise(self.variables, x, jnp.broadcast_to(t, x.shape[:1]), self.condition)

    def under(self, condition: Condition) -> "Network":
        """The same network under another condition."""
        return replace(self, condition=condition)


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """Base of all transformations."""

    def calls(self, inner: int) -> int:
        """Network calls behind one x̂₀ of the result, where `inner` are behind the given one; a doubled batch is two."""
        return inner

    @abstractmethod
    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        """The transformed denoiser.

        Raises:
          ValueError: the model or the condition lacks what this needs; says what.
        """


@dataclass(frozen=True, kw_only=True)
class Clip(Transform):
    """Clips x̂₀ to the range of the data, as DDPM's and DDIM's public codes do."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        return lambda x, t: jnp.clip(denoise(x, t), self.low, self.high)
