"""Monotone rational-quadratic splines: Durkan et al. 1906.04032.

On [−B, B], K bins with widths w, heights h and slopes δ at the knots; outside, the identity. In bin k, with
ξ = (x − x_k)/w_k and s = h_k/w_k:

    (1)  z = y_k + h_k·(sξ² + δ_k·ξ(1−ξ)) / (s + (δ_{k+1} + δ_k − 2s)·ξ(1−ξ))                       eq. 4
    (2)  dz/dx = s²(δ_{k+1}ξ² + 2sξ(1−ξ) + δ_k(1−ξ)²) / (s + (δ_{k+1} + δ_k − 2s)·ξ(1−ξ))²          eq. 5
    (3)  ξ = 2c/(−b − √(b² − 4ac)),  a = h_k(s − δ_k) + (z−y_k)D,  b = h_kδ_k − (z−y_k)D,  c = −s(z−y_k),
         D = δ_{k+1} + δ_k − 2s                                                                      eq. 6–8

A network says 3K − 1 numbers an element: softmax gives widths and heights, none below 1e-3·2B/K, softplus the
inner slopes, none below 1e-3; the outer slopes are 1. All 0 is the identity.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.flows.elementwise import Elements, Elementwise, Raw

SMALLEST = 1e-3  # width and height of a bin over 2B/K, and slope
Knots = Float[Array, "*b knots c"]


@dataclass(frozen=True, kw_only=True)
class RationalQuadratic(Elementwise):
    """Eq. (1)."""

    bins: int = 8  # K
    bound: float = 3.0  # B

    def __post_init__(self) -> None:
        if self.bins < 1 or not self.bound > 0:
            raise ValueError(f"a spline needs at least one bin and a positive bound, got {self.bins} and {self.bound}")

    @property
    def count(self) -> int:
        return 3 * self.bins - 1

    def forward(self, raw: Raw, x: Elements) -> tuple[Elements, Elements]:
        xs, ys, slopes = self._knots(raw)
        inside = jnp.abs(x) < self.bound
        safe = jnp.clip(x, -self.bound, self.bound)
        x0, width, y0, height, left, right = self._bin(xs, safe, xs, ys, slopes)
        xi, s = (safe - x0) / width, height / width
        denominator = s + (left + right - 2.0 * s) * xi * (1.0 - xi)
        z = y0 + height * (s * xi**2 + left * xi * (1.0 - xi)) / denominator
        return jnp.where(inside, z, x), jnp.where(inside, self._log_slope(xi, s, left, right), 0.0)

    def inverse(self, raw: Raw, z: Elements) -> tuple[Elements, Elements]:
        xs, ys, slopes = self._knots(raw)
        inside = jnp.abs(z) < self.bound
        safe = jnp.clip(z, -self.bound, self.bound)
        x0, width, y0, height, left, right = self._bin(ys, safe, xs, ys, slopes)
        s, up = height / width, safe - y0
        bend = left + right - 2.0 * s
        a = height * (s - left) + up * bend
        b = height * left - up * bend
        c = -s * up
        xi = 2.0 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, 0.0)))
        return jnp.where(inside, x0 + width * xi, z), jnp.where(inside, -self._log_slope(xi, s, left, right), 0.0)

    def _log_slope(self, xi: Elements, s: Elements, left: Elements, right: Elements) -> Elements:
        """The logarithm of eq. (2)."""
        denominator = s + (left + right - 2.0 * s) * xi * (1.0 - xi)
        top = right * xi**2 + 2.0 * s * xi * (1.0 - xi) + left * (1.0 - xi) ** 2
        return 2.0 * jnp.log(s) + jnp.log(top) - 2.0 * jnp.log(denominator)

    def _knots(self, raw: Raw) -> tuple[Knots, Knots, Knots]:
        """x and y of the K + 1 knots, and the slopes at them, on axis −2."""
        k = self.bins
        xs, ys = (self._cumulative(raw[..., i * k : (i + 1) * k, :]) for i in (0, 1))
        one = math.log(math.expm1(1.0 - SMALLEST))  # at which the slope is 1
        inner = SMALLEST + jax.nn.softplus(raw[..., 2 * k :, :] + one)
        outer = jnp.ones_like(xs[..., :1, :])
        return xs, ys, jnp.concatenate([outer, inner, outer], axis=-2)

    def _cumulative(self, raw: Float[Array, "*b bins c"]) -> Knots:
        parts = SMALLEST / self.bins + (1.0 - SMALLEST) * jax.nn.softmax(raw, axis=-2)
        ends = jnp.cumsum(parts, axis=-2)[..., :-1, :]
        first = jnp.zeros_like(raw[..., :1, :])
        return self.bound * (2.0 * jnp.concatenate([first, ends, first + 1.0], axis=-2) - 1.0)

    def _bin(
        self, edges: Knots, value: Elements, xs: Knots, ys: Knots, slopes: Knots
    ) -> tuple[Elements, Elements, Elements, Elements, Elements, Elements]:
        """x_k, w_k, y_k, h_k, δ_k, δ_{k+1} of the bin that `value` lies in along `edges`."""
        index = jnp.sum(value[..., None, :] >= edges[..., 1:-1, :], axis=-2, keepdims=True)

        def at(knots: Knots, step: int) -> Elements:
            return jnp.take_along_axis(knots, index + step, axis=-2)[..., 0, :]

        x0, y0 = at(xs, 0), at(ys, 0)
        return x0, at(xs, 1) - x0, y0, at(ys, 1) - y0, at(slopes, 0), at(slopes, 1)
