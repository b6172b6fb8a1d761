"""The contract of a first stage: images to codes and back, with the likelihood of the way back.

    (1)  log P(x) ≥ log P(c) + log P(x | c),  c = the codes of x

P(c) is a second stage's (experiments/vqvae_prior_*.py), P(x | c) is said here; both together are an honest bound in
bits/dim (metrics/two_stage.py).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from models.model import Model, Variables
from models.observation import Image
from models.quantize import Bottleneck, Quantizer

Codes = Int[Array, "b t"]  # all of an example, in the order in which a prior models them


class Reconstructed(NamedTuple):
    """A batch, through the bottleneck and back."""

    image: Image
    log_prob: Float[Array, " b"]  # log P(x | what went through), nats
    penalty: Float[Array, " b"]  # as models/quantize.py has them
    kl: Float[Array, " b"]
    weighted_kl: Float[Array, " b"]  # as the loss counts it
    state: Any  # the model's new `variables["state"]`
    metrics: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Codec(Model):
    """Base of all first stages. Images are [B, H, W, C] in [−1, 1]."""

    levels: int | None = None  # of a pixel; None: the data's, if it has levels

    @property
    def coded(self) -> bool:
        """Whether there are codes: an autoencoder may have none."""
        return True

    @property
    @abstractmethod
    def codes(self) -> int:
        """How many codes each of `encode`'s chooses from.

        Raises:
          ValueError: there are no codes.
        """

    @abstractmethod
    def grid(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of an image's codes in raster order; None where they lie on more than one grid."""

    @abstractmethod
    def length(self, shape: tuple[int, ...]) -> int:
        """How many codes an image of that shape has."""

    @abstractmethod
    def reconstruct(self, variables: Variables, x: Image, key: Key[Array, ""] | None = None) -> Reconstructed:
        """There and back; with a key as in training."""

    @abstractmethod
    def encode(self, variables: Variables, x: Image) -> Codes: ...

    @abstractmethod
    def decode(self, variables: Variables, codes: Codes, shape: tuple[int, ...]) -> Image:
        """Images [B, *shape] from codes, which must be in [0, `codes`)."""

    @abstractmethod
    def log_prob(self, variables: Variables, codes: Codes, x: Image) -> Float[Array, " b"]:
        """log P(x | codes) in nats."""

    def latents(self, variables: Variables, x: Image) -> Float[Array, "b rows columns d"]:
        """What the bottleneck is given, for a prior over continuous latents.

        Raises:
          ValueError: that is not one grid.
        """
        raise ValueError(f"the latents of {type(self).__name__} lie on more than one grid")

    def from_latents(self, variables: Variables, z: Float[Array, "b rows columns d"], shape: tuple[int, ...]) -> Image:
        """Images [B, *shape], by way of the codes nearest to such latents where there are codes."""
        raise ValueError(f"the latents of {type(self).__name__} lie on more than one grid")


def quantizer_of(bottleneck: Bottleneck) -> Quantizer:
    """`bottleneck`, if it has codes.

    Raises:
      ValueError: it has none.
    """
    if not isinstance(bottleneck, Quantizer):
        raise ValueError(f"an autoencoder with a {type(bottleneck).__name__} bottleneck has no codes")
    return bottleneck


def parts_of(variables: Variables, name: str) -> dict[str, Any]:
    """The variables of a bottleneck, among those of its model."""
    return {kind: variables[kind][name] for kind in ("params", "state")}


def initial(key: Key[Array, ""], net: Any, x: Float[Array, "b _ _ c"], features: int) -> tuple[Any, Any]:
    """(parameters, outputs) of an encoder or a decoder."""
    params = net.init(key, x, features)["params"]
    return params, net.apply({"params": params}, x, features)


def run(net: Any, params: Any, x: Float[Array, "b _ _ c"], features: int, key: Key[Array, ""] | None) -> Any:
    """An encoder's or a decoder's outputs; with a key as in training."""
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, 1)}
    return net.apply({"params": params}, x, features, train=key is not None, rngs=rngs)
