"""The VQ-VAE, and with another bottleneck the autoencoder and the VAE beside it.

    (1)  z = E(x),  q, k = quantizer(z),  x ~ P(x | D(q))                                     1711.00937 §3.1, fig. 1
    (2)  L = (−log P(x | D(q)) + β·KL)/dims + penalty                                         1711.00937 eq. 3

The quantizer says penalty and KL (models/quantize.py), the observation P (models/observation.py). With
models/bottlenecks.py's `Plain` for a quantizer (1) is an autoencoder, with its `NormalPosterior` a VAE.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from models.autoencoder import ConvDecoder, ConvEncoder, Decoder, Encoder
from models.codebook import VQ
from models.codec import Codec, Codes, Reconstructed, initial, parts_of, quantizer_of, run
from models.model import Batch, Variables
from models.observation import Gaussian, Image, Observation
from models.quantize import Bottleneck, Quantizer

Latent = Float[Array, "b rows columns d"]


@dataclass(frozen=True, kw_only=True)
class VQVAE(Codec):
    """Eq. (1). Codes are in raster order, those of one place next to each other."""

    encoder: Encoder = field(default_factory=ConvEncoder)
    quantizer: Bottleneck = field(default_factory=VQ)
    decoder: Decoder = field(default_factory=ConvDecoder)
    observation: Observation = field(default_factory=Gaussian)

    def __post_init__(self) -> None:
        if self.encoder.factor != self.decoder.factor:
            raise ValueError(
                f"the encoder makes images {self.encoder.factor} times smaller, the decoder grids "
                f"{self.decoder.factor} times larger: both must be alike"
            )

    @property
    def data_batches(self) -> int:
        return self.quantizer.data_batches

    @property
    def coded(self) -> bool:
        return isinstance(self.quantizer, Quantizer)

    @property
    def codes(self) -> int:
        return quantizer_of(self.quantizer).codes

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = self._places(shape)
        return rows, columns * quantizer_of(self.quantizer).per_place

    def length(self, shape: tuple[int, ...]) -> int:
        return math.prod(self.grid(shape))

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        x = batch["x"]
        keys = jax.random.split(key, 3)
        encoder, z = initial(keys[0], self.encoder, x, self.quantizer.inputs)
        quantizer = self.quantizer.init(keys[1], z)
        q = self.quantizer(quantizer, z).z
        decoder, _ = initial(keys[2], self.decoder, q, self._features(x.shape[1:]))
        params = {"encoder": encoder, "quantizer": quantizer["params"], "decoder": decoder}
        params["observation"] = self.observation.init()
        return {"params": params, "state": {"quantizer": quantizer["state"]}}

    def reconstruct(self, variables: Variables, x: Image, key: Key[Array, ""] | None = None) -> Reconstructed:
        z = self._encoded(variables, x, key)
        found = self.quantizer(parts_of(variables, "quantizer"), z, key)
        said = self._said(variables, found.z, x.shape[1:], key)
        log_prob = self.observation.log_prob(variables["params"]["observation"], said, x, self.levels)
        image, state = self.observation.mean(said, self.levels), {"quantizer": found.state}
        weighted = found.kl_weight * found.kl
        return Reconstructed(image, log_prob, found.penalty, found.kl, weighted, state, found.metrics)

    def encode(self, variables: Variables, x: Image) -> Codes:
        quantizer = quantizer_of(self.quantizer)
        indices: Any = quantizer(parts_of(variables, "quantizer"), self._encoded(variables, x)).indices
        return indices.reshape(x.shape[0], -1)

    def decode(self, variables: Variables, codes: Codes, shape: tuple[int, ...]) -> Image:
        return self.observation.mean(self._of_codes(variables, codes, shape), self.levels)

    def log_prob(self, variables: Variables, codes: Codes, x: Image) -> Float[Array, " b"]:
        said = self._of_codes(variables, codes, x.shape[1:])
        return self.observation.log_prob(variables["params"]["observation"], said, x, self.levels)

    def latents(self, variables: Variables, x: Image) -> Latent:
        return self.quantizer.latent(self._encoded(variables, x))

    def from_latents(self, variables: Variables, z: Latent, shape: tuple[int, ...]) -> Image:
        q = self.quantizer.read(parts_of(variables, "quantizer"), z)
        return self.observation.mean(self._said(variables, q, shape), self.levels)

    def _encoded(self, variables: Variables, x: Image, key: Key[Array, ""] | None = None) -> Latent:
        return run(self.encoder, variables["params"]["encoder"], x, self.quantizer.inputs, key)

    def _said(
        self, variables: Variables, q: Latent, shape: tuple[int, ...], key: Key[Array, ""] | None = None
    ) -> Image:
        return run(self.decoder, variables["params"]["decoder"], q, self._features(shape), key)

    def _of_codes(self, variables: Variables, codes: Codes, shape: tuple[int, ...]) -> Image:
        quantizer = quantizer_of(self.quantizer)
        indices = codes.reshape(codes.shape[0], *self._places(shape), quantizer.per_place)
        return self._said(variables, quantizer.embed(parts_of(variables, "quantizer"), indices), shape)

    def _features(self, shape: tuple[int, ...]) -> int:
        return self.observation.features(shape[-1], self.levels)

    def _places(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0] // self.encoder.factor, shape[1] // self.encoder.factor
