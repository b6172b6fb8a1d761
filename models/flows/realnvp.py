"""RealNVP: Dinh, Sohl-Dickstein & Bengio 1605.08803.

    (1)  z_moved = x_moved·exp(s(x_seen)) + t(x_seen)                                                eq. 7
    (2)  a scale: couplings on a checkerboard, a squeeze, couplings on channels, half of the channels factored out
                                                                                                    §3.6, fig. 4
    (3)  the last scale: couplings on a checkerboard                                                §3.6
    (4)  data goes through logit(α + (1 − 2α)·x) first; the paper has 1 − α                          §4.1

Three couplings of each kind and four in the last scale; residual networks of 64 feature maps, twice as many at the next
scale. Not the paper's: in place of batch normalisation between layers and in the networks there are activation and
layer normalisation, as an example's density may not depend on the others; and the factor of s's tanh is not learned.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Params
from models.flows.combinators import Assembled, Chain, Invert
from models.flows.conditioners import Conditioner, ResNetConditioner
from models.flows.coupling import Coupling, FactorOut
from models.flows.elementwise import Affine
from models.flows.linear import ActNorm
from models.flows.masks import Checkerboard, Halves, Mask
from models.flows.reshaping import Squeeze
from models.model import Condition
from models.patches import check_sides


@dataclass(frozen=True, kw_only=True)
class RealNVP(Assembled):
    """Eq. (2), (3), of images whose sides 2^(scales − 1) divides. z has the image's shape."""

    scales: int = 2
    couplings: int = 3  # of each kind in a scale; the last scale has one more
    conditioner: Conditioner = field(default_factory=ResNetConditioner)  # of the first scale

    def __post_init__(self) -> None:
        if self.scales < 1 or self.couplings < 1:
            raise ValueError(f"RealNVP needs at least one scale and one coupling: {self.scales=}, {self.couplings=}")

    def assemble(self) -> Bijection:
        return self._scale(0)

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        check_sides(x, 2 ** (self.scales - 1), f"RealNVP with scales={self.scales}")
        return super().init(key, x, condition)

    def _scale(self, index: int) -> Bijection:
        net: Any = self.conditioner
        if index and hasattr(net, "width"):
            net = net.clone(width=net.width * 2**index)
        if index == self.scales - 1:
            return Chain(parts=self._couplings(Checkerboard(), net, self.couplings + 1))
        squeezed = net.clone(width=net.width * 2) if hasattr(net, "width") else net
        return Chain(
            parts=(
                *self._couplings(Checkerboard(), net, self.couplings),
                Squeeze(),
                *self._couplings(Halves(), squeezed, self.couplings),
                FactorOut(bijection=self._scale(index + 1)),
                Invert(bijection=Squeeze()),
            )
        )

    def _couplings(self, mask: Mask, net: Conditioner, count: int) -> tuple[Bijection, ...]:
        found: list[Bijection] = []
        for i in range(count):
            layer = Coupling(transform=Affine(), conditioner=net, mask=replace(mask, swap=bool(i % 2)))
            found += [layer, ActNorm()]
        return tuple(found)
