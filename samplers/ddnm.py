"""DDNM: samples that agree with a measurement y = Ax₀: inpainting, super-resolution.

    (1)  x̂₀ ← x̂₀ + A⁺(y − A·x̂₀)                                                    2212.00490 eq. 13

It holds y exactly, but for what A⁺ leaves out of a blur, and knows of no noise; samplers/pigdm.py does. y is
`condition["known"]` [n, …].
"""

from dataclasses import dataclass

from jaxtyping import Array, Float

from models.denoiser import Denoise
from samplers.operators import Operator, check_shape, measurement
from samplers.transforms import Network, Transform


@dataclass(frozen=True, kw_only=True)
class DDNM(Transform):
    """Eq. (1). With a mask the known pixels of x̂₀ are y's own, bit for bit, and so are the last step's."""

    operator: Operator

    def __call__(self, denoise: Denoise, network: Network) -> Denoise:
        known, linear = measurement(network.condition, "DDNM"), self.operator.bind(network.condition)

        def replaced(x: Float[Array, "n *s"], t: Float[Array, "..."]) -> Float[Array, "n *s"]:
            x0 = denoise(x, t)
            check_shape(known, linear.apply(x0))
            return linear.consistent(x0, known)

        return replaced
