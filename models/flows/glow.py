"""Glow: Kingma & Dhariwal 1807.03039.

    (1)  a step: actnorm, invertible 1×1 convolution, affine coupling of channel halves                table 1
    (2)  a level: squeeze, K steps, half of the channels factored out                                  fig. 2
    (3)  the factored half y given what goes on, h:  N(y; μ(h), σ(h)²), μ and log σ a network that begins at 0
    (4)  the last level keeps all its channels

L levels of K steps; for CIFAR-10 the paper has L 3, K 32 and networks of 512 channels. Eq. (3) is written as a
bijection, (y − μ(h))/σ(h): then all latents together have one prior, the `Flow`'s, a standard normal or a normal of
each class, and one temperature. A level's K steps are one scan.
"""

from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Params
from models.flows.combinators import Assembled, Chain, Invert
from models.flows.conditioners import Conditioner, ConvConditioner
from models.flows.coupling import Coupling, FactorOut
from models.flows.elementwise import Affine
from models.flows.linear import ActNorm, Invertible1x1
from models.flows.reshaping import Squeeze
from models.flows.stacked import Stacked
from models.model import Condition
from models.patches import check_sides


@dataclass(frozen=True, kw_only=True)
class Glow(Assembled):
    """Eq. (1)–(4), of images whose sides 2^levels divides. z has the image's shape."""

    levels: int = 3  # L
    steps: int = 32  # K
    conditioner: Conditioner = field(default_factory=ConvConditioner)  # of the couplings, and of the learned priors
    scale: Literal["exp", "tanh", "sigmoid"] = "sigmoid"  # of the couplings, models/flows/elementwise.py
    convolution: Literal["plain", "plu"] = "plu"
    remat: str | None = None  # gradient checkpointing of a level's steps, models/flows/stacked.py

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"Glow needs at least one level, got levels={self.levels}")

    def assemble(self) -> Bijection:
        return self._level(0)

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        check_sides(x, 2**self.levels, f"Glow with levels={self.levels}")
        return super().init(key, x, condition)

    def _level(self, index: int) -> Bijection:
        step = Chain(
            parts=(
                ActNorm(),
                Invertible1x1(parametrisation=self.convolution),
                Coupling(transform=Affine(scale=self.scale), conditioner=self.conditioner),
            )
        )
        steps = Stacked(block=step, depth=self.steps, remat=self.remat)
        if index == self.levels - 1:
            return Chain(parts=(Squeeze(), steps, Invert(bijection=Squeeze())))
        learned_prior = Coupling(transform=Affine(scale="exp"), conditioner=self.conditioner)
        rest = FactorOut(bijection=self._level(index + 1))
        return Chain(parts=(Squeeze(), steps, learned_prior, rest, Invert(bijection=Squeeze())))
