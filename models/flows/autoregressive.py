"""Masked autoregressive flow: Papamakarios, Pavlakou & Murray 1705.07057, on MADE, Germain et al. 1502.03509.

    (1)  z_i = τ(x_i; net_i(x_1, …, x_{i−1})),  i = 1 … D                                           1705.07057 §3.1
    (2)  log|det| = Σ_i log|∂τ/∂x_i|:  the Jacobian is triangular
    (3)  x_i = τ⁻¹(z_i; net_i(x_1, …, x_{i−1})),  one i after the other
    (4)  h ← act((W ∘ M)h + b),  M_kj = 1 where degree(k) ≥ degree(j), of the last layer where >     1502.03509 §4

Input i has degree i, as has each of the numbers that net says of it; a hidden unit of degree d has seen x_1 … x_d. One
network call gives all of (1); (3) takes D of them. `Invert` makes of it an inverse autoregressive flow (1606.04934).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int, Key

from models.activations import ACTIVATIONS
from models.flows.bijection import Bijection, Moved, Params, per_example
from models.flows.conditioners import Label
from models.flows.elementwise import Affine, Elementwise, Raw
from models.model import Condition, label_of


def mask(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " m"], strict: bool) -> Float[np.ndarray, "n m"]:
    """M of eq. (4) from the degrees of a layer's inputs and outputs; the input axis comes first, as in a kernel."""
    return (np.greater if strict else np.greater_equal)(after[None, :], before[:, None]).astype(np.float32)


class _MaskedDense(nn.Module):
    """(W ∘ M)h + b. The mask is a constant of the program: it is neither trained nor saved."""

    kernel_init: Any
    dtype: str | None

    @nn.compact
    def __call__(self, h: Float[Array, "b n"], connected: Float[np.ndarray, "n m"]) -> Float[Array, "b m"]:
        kernel = self.param("kernel", self.kernel_init, connected.shape)
        bias = self.param("bias", nn.initializers.zeros, connected.shape[1:])
        h, kernel, bias = promote_dtype(h, kernel, bias, dtype=self.dtype)
        return h @ (kernel * jnp.asarray(connected, kernel.dtype)) + bias[None, :]


class MADE(nn.Module):
    """Eq. (4): an MLP whose numbers of coordinate i depend on the coordinates before i, and on the class."""

    width: int = 256  # of a hidden layer
    depth: int = 2  # hidden layers
    activation: Literal["relu", "silu", "tanh", "gelu"] = "relu"
    num_classes: int = 0  # classes to condition on; 0 is unconditional
    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], condition: Condition, count: int) -> Float[Array, "b {count} d"]:
        """`count` numbers of each coordinate, as `Elementwise` takes them. `condition` may hold `label` [B].

        Raises:
          ValueError: there is no hidden layer.
        """
        if self.depth < 1:
            raise ValueError(f"MADE needs at least one hidden layer, got depth={self.depth}")
        size = x.shape[1]
        inputs, h = np.arange(1, size + 1), x
        hidden = self._degrees(size)
        for i in range(self.depth):
            layer = _MaskedDense(nn.initializers.he_normal(), self.dtype, name=f"hidden_{i}")
            h = layer(h, mask(hidden if i else inputs, hidden, strict=False))
            if i == 0 and self.num_classes:
                h = h + Label(self.num_classes, name="class")(h, label_of(condition))
            h = ACTIVATIONS[self.activation](h)
        last = _MaskedDense(nn.initializers.zeros, self.dtype, name="out")
        return last(h, mask(hidden, np.tile(inputs, count), strict=True)).reshape(x.shape[0], count, size)

    def _degrees(self, size: int) -> Int[np.ndarray, " width"]:
        """Degrees of hidden units, as equally many of each as can be. No output would see one of degree D.

        A unit of degree 0 sees the class alone: without it x_1 could not depend on the class.
        """
        first = 0 if self.num_classes else 1
        return first + np.arange(self.width) * max(size - first, 1) // self.width


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Bijection):
    """Eq. (1), of vectors [B, D]. The inverse is a scan of D network calls."""

    transform: Elementwise = field(default_factory=Affine)  # τ
    net: MADE = field(default_factory=MADE)

    def init(self, key: Key[Array, ""], x: Float[Array, "b *s"], condition: Condition = None) -> Params:
        """Parameters for vectors like `x`.

        Raises:
          ValueError: x is not of vectors.
        """
        _check(x)
        return self.net.init(key, x, condition, self.transform.count)["params"]

    def forward(self, params: Params, x: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        _check(x)
        z, slopes = self.transform.forward(self._raw(params, x, condition), x)
        return z, per_example(slopes)

    def inverse(self, params: Params, z: Float[Array, "b *s"], condition: Condition = None) -> Moved:
        _check(z)

        def step(x: Any, row: Any) -> tuple[Any, Any]:
            # Of what the network says now only coordinate i is final, and that alone is used: what it says of later
            # ones comes of zeros that stand where x is not known yet.
            i, z_i = row
            raw = jax.lax.dynamic_slice_in_dim(self._raw(params, x, condition), i, 1, axis=2)
            x_i, slope = self.transform.inverse(raw, z_i)
            return jax.lax.dynamic_update_slice_in_dim(x, x_i, i, axis=1), slope

        start = jnp.zeros(z.shape, jnp.promote_types(z.dtype, jnp.float32))
        x, slopes = jax.lax.scan(step, start, (jnp.arange(z.shape[1]), z.astype(start.dtype).T[:, :, None]))
        return x, jnp.sum(slopes, axis=(0, 2))

    def _raw(self, params: Params, x: Float[Array, "b d"], condition: Condition) -> Raw:
        raw: Any = self.net.apply({"params": params}, x, condition, self.transform.count)
        return raw.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(x: Array) -> None:
    if x.ndim != 2:
        raise ValueError(
            f"an autoregressive flow takes vectors [B, D], and this is {list(x.shape)}; Vectors(bijection=…) of "
            "models/flows/reshaping.py makes it one of arrays"
        )
