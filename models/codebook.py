"""Vector quantization with a learned codebook.

Of an example's latents z and their nearest codes e (models/quantize.py, eq. 1), sg holding what is in it constant:

    (1)  gradient   penalty = mean ‖sg[z] − e‖² + β·mean ‖z − sg[e]‖²                        1711.00937 eq. 3
    (2)  averages   penalty = β·mean ‖z − sg[e]‖², and after each training batch               1711.00937 app. A.1
         N_k ← γ·N_k + (1 − γ)·n_k,  M_k ← γ·M_k + (1 − γ)·Σ z of code k,  n_k how many those are
         Ñ_k = (N_k + ε)/(ΣN + K·ε)·ΣN,  e_k ← M_k/Ñ_k for codes that were chosen
    (3)  restarts   a code with N_k < ρ·ΣN/K is put on a random z of the batch: e, N and M = N·e together
                                                                                  Jukebox, 2005.00341 app. B.1

β is on the encoder's term. Means are over places and dimensions. A code that nobody chose keeps its place: M and N fade
alike, but (2)'s ε would pull it to the origin. n and Σ z are of the whole batch, of all devices.

With `heads` H the latents of a place are cut in H parts, each quantized by itself with the same codebook.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.quantize import Gradient, Indices, Latents, Quantized, Quantizer, histogram, nearest, through, use_of

Parts = Float[Array, "b p d"]  # an example's latents as so many vectors

LLOYD_STEPS = 10  # of k-means


class Chosen(NamedTuple):
    """One codebook's choice."""

    e: Parts  # with a gradient for the codebook alone
    indices: Int[Array, "b p"]
    state: Any
    penalty: Float[Array, " b"]


@dataclass(frozen=True, kw_only=True)
class Codebook(Quantizer):
    """Base of the two."""

    size: int = 512  # K
    width: int = 64  # D, numbers of a code
    heads: int = 1  # H, codes a place
    beta: float = 0.25  # β
    gradient: Gradient = "straight_through"
    start: Literal["random", "data", "kmeans"] = "data"  # first codes: uniform in ±1/K, latents of the first batch, or
    # their k-means

    def __post_init__(self) -> None:
        if self.size < 2 or self.width < 1 or self.heads < 1 or not self.beta >= 0.0:
            raise ValueError(
                f"a codebook needs size={self.size} of 2 or more, width={self.width} and heads={self.heads} of 1 or "
                f"more, beta={self.beta} of 0 or more"
            )

    @property
    def inputs(self) -> int:
        return self.heads * self.width

    @property
    def outputs(self) -> int:
        return self.heads * self.width

    @property
    def codes(self) -> int:
        return self.size

    @property
    def per_place(self) -> int:
        return self.heads

    @property
    def data_batches(self) -> int:
        return int(self.start != "random")

    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        parts = self.parts(z)
        chosen = self.choose(variables, parts, key)
        q = through(parts, chosen.e, self.gradient).reshape(z.shape)
        indices = chosen.indices.reshape(*z.shape[:-1], self.heads)
        metrics = use_of(histogram(indices, self.size))
        return Quantized(q, indices, chosen.state, chosen.penalty, jnp.zeros(z.shape[:1]), metrics)

    def embed(self, variables: Any, indices: Indices) -> Latents:
        return self.table(variables)[indices].reshape(*indices.shape[:-1], -1)

    def parts(self, z: Latents) -> Parts:
        return z.reshape(z.shape[0], -1, self.width)

    @abstractmethod
    def table(self, variables: Any) -> Float[Array, "k d"]:
        """The codes."""

    @abstractmethod
    def choose(self, variables: Any, z: Parts, key: Key[Array, ""] | None = None) -> Chosen:
        """Eq. (1) or (2), (3)."""

    def first_codes(self, key: Key[Array, ""], z: Latents) -> Float[Array, "{self.size} {self.width}"]:
        if self.start == "random":
            return jax.random.uniform(key, (self.size, self.width), jnp.float32, -1.0, 1.0) / self.size
        rows = z.reshape(-1, self.width)
        table = _some_of(key, rows, self.size)
        if self.start == "data":
            return table

        def lloyd(_: Any, table: Any) -> Any:
            index = nearest(rows, table)
            counts, sums = _tally(rows, index, self.size)
            return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1.0)[:, None], table)

        return jax.lax.fori_loop(0, LLOYD_STEPS, lloyd, table)


@dataclass(frozen=True, kw_only=True)
class VQ(Codebook):
    """Eq. (1): the codebook is a parameter, and the optimiser's."""

    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        return {"params": {"codebook": self.first_codes(key, z)}, "state": {}}

    def table(self, variables: Any) -> Float[Array, "k d"]:
        return variables["params"]["codebook"]

    def choose(self, variables: Any, z: Parts, key: Key[Array, ""] | None = None) -> Chosen:
        table = self.table(variables)
        index = nearest(z.reshape(-1, self.width), table).reshape(z.shape[:2])
        e = table[index]
        fixed = jax.lax.stop_gradient
        penalty = jnp.mean((fixed(z) - e) ** 2 + self.beta * (z - fixed(e)) ** 2, axis=(1, 2))
        return Chosen(e, index, variables["state"], penalty)


@dataclass(frozen=True, kw_only=True)
class EMA(Codebook):
    """Eq. (2), (3): the codebook is an average of the latents that chose each code."""

    decay: float = 0.99  # γ
    epsilon: float = 1e-5  # ε
    restart: float = 0.0  # ρ, of the mean count, below which a code is put elsewhere; 0 leaves all where they are

    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        table = self.first_codes(key, z)
        # N = 1 and M = e; a copy, since a donated state may not hold one array twice.
        return {"params": {}, "state": {"codebook": table, "count": jnp.ones(self.size), "sum": jnp.copy(table)}}

    def table(self, variables: Any) -> Float[Array, "k d"]:
        return variables["state"]["codebook"]

    def choose(self, variables: Any, z: Parts, key: Key[Array, ""] | None = None) -> Chosen:
        table, state = self.table(variables), variables["state"]
        index = nearest(z.reshape(-1, self.width), table).reshape(z.shape[:2])
        e = table[index]
        if key is not None:
            state = self.moved(state, jax.lax.stop_gradient(z).reshape(-1, self.width), index.reshape(-1), key)
        return Chosen(e, index, state, self.beta * jnp.mean((z - jax.lax.stop_gradient(e)) ** 2, axis=(1, 2)))

    def moved(self, state: Any, z: Float[Array, "n d"], index: Int[Array, " n"], key: Key[Array, ""]) -> Any:
        """Eq. (2), then (3)."""
        n, sums = _tally(z, index, self.size)
        count = self.decay * state["count"] + (1.0 - self.decay) * n
        total = self.decay * state["sum"] + (1.0 - self.decay) * sums
        all_of_them = jnp.sum(count)
        smoothed = (count + self.epsilon) / (all_of_them + self.size * self.epsilon) * all_of_them
        table = jnp.where(n[:, None] > 0, total / smoothed[:, None], state["codebook"])
        if self.restart:
            mean = all_of_them / self.size
            dead = count < self.restart * mean
            table = jnp.where(dead[:, None], _some_of(key, z, self.size), table)
            count = jnp.where(dead, mean, count)
            total = jnp.where(dead[:, None], mean * table, total)
        return {"codebook": table, "count": count, "sum": total}


def _tally(
    z: Float[Array, "n d"], index: Int[Array, " n"], size: int
) -> tuple[Float[Array, " {size}"], Float[Array, "{size} d"]]:
    """How many latents chose each code, and their sum."""
    return histogram(index, size), jnp.zeros((size, z.shape[1]), z.dtype).at[index].add(z)


def _some_of(key: Key[Array, ""], rows: Float[Array, "n d"], size: int) -> Float[Array, "{size} d"]:
    """So many rows at random; where there are not as many, some twice, and moved a little so that they differ."""
    n = rows.shape[0]
    if n >= size:
        return rows[jax.random.choice(key, n, (size,), replace=False)]
    chosen = rows[jax.random.randint(key, (size,), 0, n)]
    spread = 0.01 * jnp.std(rows, axis=0, keepdims=True) + 1e-6
    return chosen + spread * jax.random.normal(jax.random.fold_in(key, 1), chosen.shape, rows.dtype)
