"""VQ-VAE-2: a coarse grid of codes that says what is there, and a fine one that says how it looks.

    (1)  h = E_b(x),  z_t = E_t(h),  q_t = quantizer_t(z_t)                                1906.00446 §3.1, alg. 1
    (2)  z_b = (h, D_t(q_t))·W,  q_b = quantizer_b(z_b)
    (3)  x ~ P(x | D(up(q_t), q_b)),  up by nearest neighbours

L is models/vqvae.py's (2), its penalties the mean of both. Codes are those of the coarse grid, then those of the fine
one; both quantizers have equally many, so that any sequence of codes is an image.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from models.autoencoder import ConvDecoder, ConvEncoder, Decoder, Encoder
from models.codebook import EMA
from models.codec import Codec, Codes, Reconstructed, initial, parts_of, run
from models.model import Batch, Variables
from models.observation import Gaussian, Image, Observation
from models.quantize import Quantized, Quantizer

Latent = Float[Array, "b rows columns d"]


@dataclass(frozen=True, kw_only=True)
class VQVAE2(Codec):
    """Eq. (1)–(3)."""

    encoder: Encoder = field(default_factory=ConvEncoder)  # E_b, from the image to the fine grid
    top_encoder: Encoder = field(default_factory=lambda: ConvEncoder(reduction=2))  # E_t, from there to the coarse one
    top_quantizer: Quantizer = field(default_factory=EMA)
    top_decoder: Decoder = field(default_factory=lambda: ConvDecoder(reduction=2))  # D_t, from there to the fine one
    quantizer: Quantizer = field(default_factory=EMA)
    decoder: Decoder = field(default_factory=ConvDecoder)  # D, from the fine grid to the image
    observation: Observation = field(default_factory=Gaussian)
    width: int = 128  # numbers of a place of h and of D_t's outputs

    def __post_init__(self) -> None:
        pairs = ((self.encoder, self.decoder), (self.top_encoder, self.top_decoder))
        for encoder, decoder in pairs:
            if encoder.factor != decoder.factor:
                raise ValueError(
                    f"an encoder that makes {encoder.factor} times smaller stands against a decoder that makes "
                    f"{decoder.factor} times larger: both must be alike"
                )
        if self.top_quantizer.codes != self.quantizer.codes:
            raise ValueError(
                f"both quantizers must have equally many codes, got {self.top_quantizer.codes} and "
                f"{self.quantizer.codes}"
            )

    @property
    def data_batches(self) -> int:
        return max(self.top_quantizer.data_batches, self.quantizer.data_batches)

    @property
    def codes(self) -> int:
        return self.quantizer.codes

    def grid(self, shape: tuple[int, ...]) -> None:
        return None

    def length(self, shape: tuple[int, ...]) -> int:
        return sum(map(math.prod, self._grids(shape)))

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        x = batch["x"]
        keys = dict(
            zip(
                ("encoder", "top_encoder", "top", "top_decoder", "join", "fine", "decoder"),
                jax.random.split(key, 7),
                strict=True,
            )
        )
        params: dict[str, Any] = {"observation": self.observation.init()}
        params["encoder"], h = initial(keys["encoder"], self.encoder, x, self.width)
        params["top_encoder"], z = initial(keys["top_encoder"], self.top_encoder, h, self.top_quantizer.inputs)
        top = self.top_quantizer.init(keys["top"], z)
        q_top = self.top_quantizer(top, z).z
        params["top_decoder"], told = initial(keys["top_decoder"], self.top_decoder, q_top, self.width)
        both = jnp.concatenate([h, told], axis=-1)
        params["join"] = self._join.init(keys["join"], both)["params"]
        z = self._join.apply({"params": params["join"]}, both)
        fine = self.quantizer.init(keys["fine"], z)  # type: ignore[arg-type]
        params |= {"top": top["params"], "fine": fine["params"]}
        q = self._joined(q_top, self.quantizer(fine, z).z)  # type: ignore[arg-type]
        params["decoder"], _ = initial(keys["decoder"], self.decoder, q, self._features(x.shape[1:]))
        return {"params": params, "state": {"top": top["state"], "fine": fine["state"]}}

    def reconstruct(self, variables: Variables, x: Image, key: Key[Array, ""] | None = None) -> Reconstructed:
        top, fine = self._quantized(variables, x, key)
        said = self._said(variables, top.z, fine.z, x.shape[1:], key)
        log_prob = self.observation.log_prob(variables["params"]["observation"], said, x, self.levels)
        metrics = {f"top_{name}": value for name, value in top.metrics.items()} | fine.metrics
        return Reconstructed(
            self.observation.mean(said, self.levels),
            log_prob,
            0.5 * (top.penalty + fine.penalty),
            top.kl + fine.kl,
            top.kl_weight * top.kl + fine.kl_weight * fine.kl,
            {"top": top.state, "fine": fine.state},
            metrics,
        )

    def encode(self, variables: Variables, x: Image) -> Codes:
        indices: Any = [found.indices for found in self._quantized(variables, x)]
        return jnp.concatenate([found.reshape(x.shape[0], -1) for found in indices], axis=1)

    def decode(self, variables: Variables, codes: Codes, shape: tuple[int, ...]) -> Image:
        return self.observation.mean(self._of_codes(variables, codes, shape), self.levels)

    def log_prob(self, variables: Variables, codes: Codes, x: Image) -> Float[Array, " b"]:
        said = self._of_codes(variables, codes, x.shape[1:])
        return self.observation.log_prob(variables["params"]["observation"], said, x, self.levels)

    def _quantized(
        self, variables: Variables, x: Image, key: Key[Array, ""] | None = None
    ) -> tuple[Quantized, Quantized]:
        """Eq. (1), (2)."""
        params = variables["params"]
        keys = (None,) * 5 if key is None else tuple(jax.random.split(key, 5))
        h = run(self.encoder, params["encoder"], x, self.width, keys[0])
        z_top = run(self.top_encoder, params["top_encoder"], h, self.top_quantizer.inputs, keys[1])
        top = self.top_quantizer(parts_of(variables, "top"), z_top, keys[2])
        told = run(self.top_decoder, params["top_decoder"], top.z, self.width, keys[3])
        z: Any = self._join.apply({"params": params["join"]}, jnp.concatenate([h, told], axis=-1))
        return top, self.quantizer(parts_of(variables, "fine"), z, keys[4])

    def _of_codes(self, variables: Variables, codes: Codes, shape: tuple[int, ...]) -> Image:
        top, fine = self._grids(shape)
        coarse, rest = jnp.split(codes, [math.prod(top)], axis=1)
        q_top = self.top_quantizer.embed(parts_of(variables, "top"), coarse.reshape(-1, *top))
        q = self.quantizer.embed(parts_of(variables, "fine"), rest.reshape(-1, *fine))
        return self._said(variables, q_top, q, shape)

    def _said(
        self,
        variables: Variables,
        q_top: Latent,
        q: Float[Array, "b fine_rows fine_columns e"],
        shape: tuple[int, ...],
        key: Key[Array, ""] | None = None,
    ) -> Image:
        return run(self.decoder, variables["params"]["decoder"], self._joined(q_top, q), self._features(shape), key)

    def _joined(
        self, q_top: Latent, q: Float[Array, "b fine_rows fine_columns e"]
    ) -> Float[Array, "b fine_rows fine_columns _"]:
        """Eq. (3): what D reads."""
        up = jnp.repeat(jnp.repeat(q_top, self.top_encoder.factor, axis=1), self.top_encoder.factor, axis=2)
        return jnp.concatenate([up, q], axis=-1)

    @property
    def _join(self) -> nn.Module:
        return nn.Dense(self.quantizer.inputs)

    def _features(self, shape: tuple[int, ...]) -> int:
        return self.observation.features(shape[-1], self.levels)

    def _grids(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the coarse and of the fine indices."""
        fine = tuple(side // self.encoder.factor for side in shape[:2])
        top = tuple(side // self.top_encoder.factor for side in fine)
        return (*top, self.top_quantizer.per_place), (*fine, self.quantizer.per_place)
