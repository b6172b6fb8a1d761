"""NICE: Dinh, Krueger & Bengio 1410.8516.

    (1)  x = (255v + u)/256, v in [0, 1] and u uniform                              §5: dequantised, scaled to [0, 1]
    (2)  h⁰: even pixels first, then odd ones
    (3)  h⁺_moved = h_moved + m(h_seen), the two halves in turn seen and moved      eq. 7, 9: four layers
    (4)  z = h⁴·eˢ, elementwise                                                     §3.3
    (5)  log p(x) = Σ log p_logistic(z_d) + Σ s_d                                   eq. 4, §3.4
    (6)  m = e⁻ˢ·net                                                                how m is written here

For MNIST each m has five hidden layers of 1,000 rectified units and a linear last one. The paper's log-likelihoods are
of x on [0, 1]: they leave out the D·log 256 by which the probability of a byte image is smaller.

Eq. (6) changes no function that the model can be: the last layer is linear. It changes what a step of the optimiser
does. A pixel that is always black has s ≈ 7, and what (3) as it stands hands back to the network from it is up to e⁷
times its share, all of it dequantisation's noise; in units of z every pixel hands back at most 1.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, Moved, Params
from models.flows.conditioners import Conditioner, MLPConditioner
from models.flows.linear import DiagonalScale
from models.flows.masks import Halves
from models.flows.permutations import EvenOddFirst
from models.model import Condition

LOGISTIC_STD = math.pi / math.sqrt(3.0)


@dataclass(frozen=True, kw_only=True)
class NICE(Bijection):
    """Eq. (2)–(4), of images or vectors."""

    couplings: int = 4
    conditioner: Conditioner = field(default_factory=lambda: MLPConditioner(width=1000, depth=5))
    standardise: bool = True  # s begins where x has a logistic's spread; False: at 0, as in the paper
    latent_units: bool = True  # eq. (6); False: m = net

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        h = self._ordered(x)
        scale = DiagonalScale(standardise=LOGISTIC_STD if self.standardise else 0.0).init(key, h)
        layers = {}
        for i in range(self.couplings):
            seen, moved = self._mask(i).split(h)
            layer_key = jax.random.fold_in(key, i)
            layers[str(i)] = self.conditioner.init(layer_key, seen, condition, moved.shape[-1])["params"]
        return {"scale": scale, "couplings": layers}

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        h = self._ordered(x)
        for i in range(self.couplings):
            seen, moved = self._mask(i).split(h)
            h = self._mask(i).merge(seen, moved + self._shift(params, i, seen, moved, condition))
        z, logdet = DiagonalScale().forward(params["scale"], h)
        return z.reshape(x.shape), logdet

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        h, logdet = DiagonalScale().inverse(params["scale"], z.reshape(z.shape[0], -1))
        for i in reversed(range(self.couplings)):
            seen, moved = self._mask(i).split(h)
            h = self._mask(i).merge(seen, moved - self._shift(params, i, seen, moved, condition))
        return EvenOddFirst().inverse({}, h)[0].reshape(z.shape), logdet

    def _ordered(self, x: Float[Array, "b *s"]) -> Float[Array, "b d"]:
        """Eq. (2)."""
        return EvenOddFirst().forward({}, x.reshape(x.shape[0], -1))[0]

    def _mask(self, i: int) -> Halves:
        return Halves(swap=bool(i % 2))

    def _shift(self, params: Params, i: int, seen: Any, moved: Any, condition: Condition) -> Float[Array, "b m"]:
        """m of eq. (3)."""
        said: Any = self.conditioner.apply({"params": params["couplings"][str(i)]}, seen, condition, moved.shape[-1])
        if not self.latent_units:
            return said.astype(moved.dtype)
        _, s = self._mask(i).split(params["scale"]["log_scale"][None])
        return said.astype(moved.dtype) * jnp.exp(-s)
