"""Linear operators y = Ax of images: a mask, a blur, a reduction. Exact inverses by the factors of their axes.

    (1)  A = A_h ⊗ A_w acts on rows and columns, on every channel alike
    (2)  A_h A_hᵀ = U_h Λ_h U_hᵀ, so AAᵀ = (U_h ⊗ U_w)(Λ_h ⊗ Λ_w)(U_h ⊗ U_w)ᵀ;  singular values √(λ_h λ_w)
    (3)  (a·AAᵀ + b·I)⁻¹y = U·(Uᵀy / (a·λ_h λ_w + b))
    (4)  A⁺y = Aᵀ U·(Uᵀy / λ_h λ_w), singular values below a cut-off left out

An operator is configuration; `bind` gives the map that it is under a condition, which is where a mask comes from.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.model import Condition
from paths.path import expand

Coefficient = float | Float[Array, ""] | Float[Array, " n"]
ROUNDING = 1e-6  # of the largest of (3)'s denominators: what is below is a zero that float32 rounded


class Linear(ABC):
    """A linear map of samples x [n, *s] to measurements y [n, *m]."""

    @abstractmethod
    def apply(self, x: Float[Array, "n *s"]) -> Float[Array, "n *m"]:
        """Ax.

        Raises:
          ValueError: there is no such map from x's shape.
        """

    @abstractmethod
    def adjoint(self, y: Float[Array, "n *m"]) -> Float[Array, "n *s"]:
        """Aᵀy."""

    @abstractmethod
    def gram_solve(self, y: Float[Array, "n *m"], a: Coefficient, b: Coefficient) -> Float[Array, "n *m"]:
        """(a·AAᵀ + b·I)⁻¹y, a and b one for all or one a sample. Directions in which the sum is zero give zero."""

    @abstractmethod
    def pseudo_inverse(self, y: Float[Array, "n *m"]) -> Float[Array, "n *s"]:
        """A⁺y."""

    def consistent(self, x: Float[Array, "n *s"], y: Float[Array, "n *m"]) -> Float[Array, "n *s"]:
        """x + A⁺(y − Ax): the sample nearest to x whose measurement is y, as far as A⁺ reaches."""
        return x + self.pseudo_inverse(y - self.apply(x))


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """Base of all operators."""

    @abstractmethod
    def bind(self, condition: Condition) -> Linear:
        """The map under a condition.

        Raises:
          ValueError: the condition lacks what it needs.
        """


@dataclass(frozen=True, kw_only=True)
class Mask(Operator):
    """Keeps the known pixels, where `condition["mask"]` [n, H, W, 1] is 1, and puts zero elsewhere."""

    def bind(self, condition: Condition) -> "Masked":
        if "mask" not in (condition or {}):
            raise ValueError("the mask operator needs condition['mask'], 1 where a pixel is known; there is none")
        return Masked((condition or {})["mask"])


@dataclass(frozen=True)
class Masked(Linear):
    """`Mask` with its mask. AAᵀ is the mask itself: measurements off it say nothing, whatever they hold."""

    mask: Float[Array, "n *m"]

    def _keep(self, values: Any) -> Any:
        return jnp.where(self.mask > 0.5, values, 0.0)

    def apply(self, x: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
        return self._keep(x)

    def adjoint(self, y: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
        return self._keep(y)

    def gram_solve(self, y: Float[Array, "n *s"], a: Coefficient, b: Coefficient) -> Float[Array, "n *s"]:
        total = _each(a, y) + _each(b, y)
        return self._keep(jnp.where(total > 0.0, y / jnp.where(total > 0.0, total, 1.0), 0.0))

    def pseudo_inverse(self, y: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
        return self._keep(y)

    def consistent(self, x: Float[Array, "n *s"], y: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
        # x + (y − x) is y but for its last bit; this is y.
        return jnp.where(self.mask > 0.5, y, x)


@dataclass(frozen=True, kw_only=True)
class Separable(Operator, Linear):
    """Base of the operators (1): a matrix for an axis of any length."""

    @property
    def cutoff_squared(self) -> float:
        """Eigenvalues of AAᵀ, as a fraction of the largest, at or below which (4) takes them as zero."""
        return ROUNDING

    @abstractmethod
    def matrix(self, size: int) -> Float[np.ndarray, "m {size}"]:
        """A_h in float64.

        Raises:
          ValueError: an axis of that length cannot be mapped.
        """

    @abstractmethod
    def input_size(self, size: int) -> int:
        """The length of the axis that is mapped to one of `size`."""

    def bind(self, condition: Condition) -> Linear:
        return self

    def apply(self, x: Float[Array, "n *s"]) -> Float[Array, "n *m"]:
        _check_image(self, x)
        return _on_axes(self.matrix(x.shape[1]), self.matrix(x.shape[2]), x)

    def adjoint(self, y: Float[Array, "n *m"]) -> Float[Array, "n *s"]:
        _check_image(self, y)
        rows, columns = (self.matrix(self.input_size(size)).T for size in y.shape[1:3])
        return _on_axes(rows, columns, y)

    def gram_solve(self, y: Float[Array, "n *m"], a: Coefficient, b: Coefficient) -> Float[Array, "n *m"]:
        def weights(values: Float[Array, "1 h w 1"]) -> Float[Array, "n h w 1"]:
            total = _each(a, y) * values + _each(b, y)
            kept = total > ROUNDING * jnp.max(total, axis=(1, 2), keepdims=True)
            return jnp.where(kept, 1.0 / jnp.where(kept, total, 1.0), 0.0)

        return self._in_eigenvectors(y, weights)

    def pseudo_inverse(self, y: Float[Array, "n *m"]) -> Float[Array, "n *s"]:
        def weights(values: Float[Array, "1 h w 1"]) -> Float[Array, "1 h w 1"]:
            kept = values > self.cutoff_squared * jnp.max(values)
            return jnp.where(kept, 1.0 / jnp.where(kept, values, 1.0), 0.0)

        return self.adjoint(self._in_eigenvectors(y, weights))

    def _in_eigenvectors(self, y: Any, weights: Any) -> Any:
        """Multiplies y's coefficients in AAᵀ's eigenvectors by weights of the eigenvalues."""
        _check_image(self, y)
        (rows, u), (columns, v) = (_eigen(self, self.input_size(size)) for size in y.shape[1:3])
        values = jnp.asarray(np.outer(rows, columns)[None, :, :, None], y.dtype)
        return _on_axes(u, v, weights(values) * _on_axes(u.T, v.T, y))


@dataclass(frozen=True, kw_only=True)
class Blur(Separable):
    """Convolution with a Gaussian, cut at four standard deviations; the image goes on beyond its border mirrored."""

    std: float  # in pixels
    cutoff: float = 0.05  # singular values up to this fraction of the largest are zero to A⁺, or it would amplify noise

    def __post_init__(self) -> None:
        if not self.std > 0.0 or not 0.0 < self.cutoff < 1.0:
            raise ValueError(f"blur: std={self.std:g} must be positive and cutoff={self.cutoff:g} in (0, 1)")

    @property
    def cutoff_squared(self) -> float:
        return self.cutoff**2

    def matrix(self, size: int) -> Float[np.ndarray, "m {size}"]:
        reach = int(4.0 * self.std + 0.5)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / self.std) ** 2)
        result = np.zeros((size, size))
        for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
            at = (np.arange(size) + offset) % (2 * size)  # d c b a | a b c d | d c b a, of period 2·size
            result[np.arange(size), np.minimum(at, 2 * size - 1 - at)] += weight
        return result

    def input_size(self, size: int) -> int:
        return size


@dataclass(frozen=True, kw_only=True)
class Downsample(Separable):
    """Means of square blocks."""

    factor: int  # side of a block

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"downsample: factor={self.factor} must be at least 1")

    def matrix(self, size: int) -> Float[np.ndarray, "m {size}"]:
        if size % self.factor:
            raise ValueError(f"downsample: blocks of {self.factor} do not divide an image's side of {size} pixels")
        return np.kron(np.eye(size // self.factor), np.full((1, self.factor), 1.0 / self.factor))

    def input_size(self, size: int) -> int:
        return size * self.factor


@lru_cache(maxsize=32)
def _eigen(operator: Separable, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Λ and U of (2) for an axis, in float64."""
    matrix = operator.matrix(size)
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    return np.maximum(values, 0.0), vectors


def _each(coefficient: Coefficient, y: Any) -> Any:
    """A coefficient of all samples or of each, as it multiplies y."""
    return expand(jnp.broadcast_to(jnp.asarray(coefficient, y.dtype), y.shape[:1]), y)


def _on_axes(rows: np.ndarray, columns: np.ndarray, x: Any) -> Any:
    # An inverse is only as good as its products: no 10-bit mantissas on devices that default to them.
    left, right = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    return jnp.einsum("ah,bw,nhwc->nabc", left, right, x, precision="highest")


def _check_image(operator: Any, x: Any) -> None:
    if x.ndim != 4:
        raise ValueError(f"{type(operator).__name__.lower()} acts on images [n, H, W, C], got shape {tuple(x.shape)}")


def measurement(condition: Condition, name: str) -> Float[Array, "n *m"]:
    """y from the condition.

    Raises:
      ValueError: it has none.
    """
    if "known" not in (condition or {}):
        raise ValueError(f"{name} needs condition['known'], what was measured of each sample; there is none")
    return (condition or {})["known"]


def check_shape(known: Float[Array, "n *m"], measured: Float[Array, "n *k"]) -> None:
    """Raises a ValueError where what is known has another shape than what the operator measures."""
    if known.shape != measured.shape:
        raise ValueError(
            f"condition['known'] has shape {tuple(known.shape)}, but the operator measures {tuple(measured.shape)}"
        )
