"""Residual vector quantization: each level quantizes what the levels before it left over.

    (1)  r_1 = z,  e_l = nearest code of level l to r_l,  r_{l+1} = r_l − sg[e_l]      2107.03312 alg. 1; 2203.01941 §3
    (2)  q = Σ_l e_l,  with one gradient for all levels (models/quantize.py, eq. 2 or 3)
    (3)  penalty = Σ_l that of level l on r_l

L levels of K codes say as much as one codebook of K^L, and can be cut off after any level.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from models.codebook import EMA, Codebook
from models.quantize import Indices, Latents, Quantized, Quantizer, histogram, through, use_of


@dataclass(frozen=True, kw_only=True)
class ResidualVQ(Quantizer):
    """Eq. (1)–(3), the levels one scan; each has a codebook of its own."""

    codebook: Codebook = field(default_factory=EMA)
    depth: int = 4  # L, levels

    def __post_init__(self) -> None:
        if self.depth < 1 or self.codebook.heads != 1:
            raise ValueError(
                f"a residual quantizer has depth={self.depth} of 1 or more, of codebooks of one head, "
                f"not {self.codebook.heads}"
            )

    @property
    def inputs(self) -> int:
        return self.codebook.width

    @property
    def outputs(self) -> int:
        return self.codebook.width

    @property
    def codes(self) -> int:
        return self.codebook.codes

    @property
    def per_place(self) -> int:
        return self.depth

    @property
    def data_batches(self) -> int:
        return self.codebook.data_batches

    def init(self, key: Key[Array, ""], z: Latents) -> dict[str, Any]:
        def level(rest: Any, key: Any) -> tuple[Any, Any]:
            variables = self.codebook.init(key, rest)
            return rest - self.codebook.choose(variables, rest).e, variables

        return jax.lax.scan(level, self.codebook.parts(z), jax.random.split(key, self.depth))[1]

    def __call__(self, variables: Any, z: Latents, key: Key[Array, ""] | None = None) -> Quantized:
        parts = self.codebook.parts(z)
        keys = None if key is None else jax.random.split(key, self.depth)

        def level(rest: Any, row: Any) -> tuple[Any, Any]:
            variables, key = row
            chosen = self.codebook.choose(variables, rest, key)
            return rest - jax.lax.stop_gradient(chosen.e), chosen

        _, (e, index, state, penalty) = jax.lax.scan(level, parts, (variables, keys))
        q = through(parts, jnp.sum(e, axis=0), self.codebook.gradient).reshape(z.shape)
        indices = jnp.moveaxis(index, 0, -1).reshape(*z.shape[:-1], self.depth)
        used = jax.vmap(lambda level: use_of(histogram(level, self.codes)))(index)
        return Quantized(
            q, indices, state, jnp.sum(penalty, axis=0), jnp.zeros(z.shape[:1]), jax.tree.map(jnp.mean, used)
        )

    def embed(self, variables: Any, indices: Indices) -> Latents:
        """Of fewer levels than there are, the first ones, what those alone say."""
        some = jax.tree.map(lambda leaf: leaf[: indices.shape[-1]], variables)
        e = jax.vmap(lambda v, index: self.codebook.table(v)[index])(some, jnp.moveaxis(indices, -1, 0))
        return jnp.sum(e, axis=0)
