"""Quantizers: what stands between an encoder and a decoder. The contract, the search and the two gradients.

    (1)  k(z) = argmin_k ‖z − e_k‖² = argmin_k ½‖e_k‖² − z·e_k,  e = e_k(z)                  1711.00937 eq. 1, 2
    (2)  straight-through: the decoder reads q = e, and ∂q/∂z is taken for the identity       1711.00937 §3.2
    (3)  rotation: q = λ·R·z with λ = ‖e‖/‖z‖ and R = I − 2·r·rᵀ + 2·ê·ẑᵀ, both held constant  2410.06424 eq. 3, 4
         ẑ = z/‖z‖, ê = e/‖e‖, r = (ẑ + ê)/‖ẑ + ê‖: R turns ẑ into ê, so that again q = e
    (4)  perplexity = exp(−Σ_k p_k·log p_k), usage = #{k: p_k > 0}/K,  p of all codes of a batch

A code is a row of a codebook [K, D]. A place of the latent grid has M codes (1, but for residual and multi-head
quantizers), and a quantizer's `indices` end in an axis of that length. In an autoencoder without codes the same place
is taken by models/bottlenecks.py.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

HELD = 2**20  # distances that are held at once: what a CPU keeps in its cache
FEWEST = 128  # codes at once even so, for a product that fills a GPU

Latents = Float[Array, "b *s f"]
Indices = Int[Array, "b *s m"]
Gradient = Literal["straight_through", "rotation"]


class Quantized(NamedTuple):
    """What a bottleneck makes of an encoder's outputs."""

    z: Float[Array, "b *s d"]  # what the decoder reads, with a gradient for the encoder
    indices: Indices | None  # of codes; None where there are none
    state: Any  # the bottleneck's new state: the old one, unless training
    penalty: Float[Array, " b"]  # squared errors, a mean over an example's latents, to be added to the loss
    kl: Float[Array, " b"]  # of all an example's latents to their prior, nats; 0 where that is constant
    metrics: dict[str, Array]  # for the log
    kl_weight: float = 1.0  # what the loss counts it: β


@dataclass(frozen=True, kw_only=True)
class Bottleneck(ABC):
    """Base of all that can stand between an encoder and a decoder. `variables` is {"params", "state"}."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Numbers a place that it is given."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Numbers a place that the decoder is given."""

    @property
    def data_batches(self) -> int:
        """1 where `init` looks at latents' values, 0 where it looks at their shape."""
        return 0

    @abstractmethod
    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        """Variables, for latents like z."""

    @abstractmethod
    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        """With a key, as in training: what is drawn is drawn, and statistics move."""

    def latent(self, z: Latents) -> Float[Array, "b *s d"]:
        """Of what it is given, what a prior over continuous latents models: all of it."""
        return z

    def read(self, variables: Any, latent: Latents) -> Latents:
        """What the decoder reads where such a latent has been drawn."""
        return self(variables, latent).z


@dataclass(frozen=True, kw_only=True)
class Quantizer(Bottleneck):
    """Base of those with codes."""

    @property
    @abstractmethod
    def codes(self) -> int:
        """K, how many codes each index chooses from."""

    @property
    def per_place(self) -> int:
        """M, indices a place."""
        return 1

    @abstractmethod
    def embed(self, variables: Any, indices: Indices) -> Latents:
        """What the decoder reads where these are the indices."""


def nearest(z: Float[Array, "n d"], codebook: Float[Array, "k d"]) -> Int[Array, " n"]:
    """Eq. (1), without a gradient.

    Distances are matrix products, of so many codes at a time that about 2²⁰ are held: neither the differences [n, K, D]
    nor, for large K, all of the distances [n, K] are ever made. Of equally near codes the first.
    """
    z, codebook = jax.lax.stop_gradient((z, codebook))
    size, codes = z.shape[0], codebook.shape[0]
    at_once = min(codes, max(FEWEST, HELD // max(size, 1)))
    parts = -(-codes // at_once)
    # Half the squared length, infinite for the rows that fill the last part up: they are nobody's nearest.
    half = 0.5 * jnp.sum(codebook**2, axis=1)
    rest = parts * at_once - codes
    half = jnp.pad(half, (0, rest), constant_values=jnp.inf).reshape(parts, at_once)
    tables = jnp.pad(codebook, ((0, rest), (0, 0))).reshape(parts, at_once, -1)
    places = jnp.arange(at_once, dtype=jnp.int32)

    def search(table: Float[Array, "c d"], half: Float[Array, " c"]) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
        # In full precision: a GPU's or TPU's quicker products would choose other codes.
        distance = half[None, :] - jnp.matmul(z, table.T, precision=jax.lax.Precision.HIGHEST)
        least = jnp.min(distance, axis=1)
        # argmin, as two reductions that a CPU vectorises.
        first = jnp.min(jnp.where(distance == least[:, None], places[None, :], at_once), axis=1)
        return least, jnp.minimum(first, at_once - 1)

    if parts == 1:
        return search(tables[0], half[0])[1]

    def step(best: Any, part: Any) -> tuple[Any, None]:
        first, table, half = part
        least, index = search(table, half)
        nearer = least < best[0]
        return (jnp.where(nearer, least, best[0]), jnp.where(nearer, first + index, best[1])), None

    start = (jnp.full((size,), jnp.inf, z.dtype), jnp.zeros((size,), jnp.int32))
    firsts = at_once * jnp.arange(parts, dtype=jnp.int32)
    (_, index), _ = jax.lax.scan(step, start, (firsts, tables, half))
    return index


def through(z: Latents, e: Latents, gradient: Gradient = "straight_through") -> Latents:
    """q = e, to the last bit, with the gradient of eq. (2) or (3) for z and none for e."""
    e = jax.lax.stop_gradient(e)
    moved = z if gradient == "straight_through" else _rotated(z, e)
    return e + (moved - jax.lax.stop_gradient(moved))


def _rotated(z: Latents, e: Latents) -> Latents:
    """Eq. (3)."""
    fixed = jax.lax.stop_gradient(z)
    length = lambda v: jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-12)  # noqa: E731
    z_unit, e_unit = fixed / length(fixed), e / length(e)
    r = (z_unit + e_unit) / length(z_unit + e_unit)
    along = lambda unit: jnp.sum(z * unit, axis=-1, keepdims=True)  # noqa: E731
    return length(e) / length(fixed) * (z - 2.0 * along(r) * r + 2.0 * along(z_unit) * e_unit)


def histogram(indices: Int[Array, "*n"], codes: int) -> Float[Array, " {codes}"]:
    """How often each code occurs; under jit over all devices' examples."""
    return jnp.zeros((codes,), jnp.float32).at[indices.reshape(-1)].add(1.0)


def use_of(counts: Float[Array, " k"]) -> dict[str, Array]:
    """Eq. (4)."""
    p = counts / jnp.maximum(jnp.sum(counts), 1.0)
    entropy = -jnp.sum(jax.scipy.special.xlogy(p, p))
    return {"perplexity": jnp.exp(entropy), "usage": jnp.mean((counts > 0).astype(jnp.float32))}
