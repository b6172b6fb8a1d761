"""Densities of images that need no learning: what a table of likelihoods is checked by.

    (1)  uniform = log₂ n,  n levels: 8 for bytes
    (2)  a histogram of each place, one count more than was seen: exact
    (3)  a Gaussian of each place, exact: −log₂ of its mass over each bin; and dequantised, which bounds that from above
    (4)  a Gaussian of full covariance, dequantised
    (5)  PNG of all images as one strip, so that its header is paid once, levels as bytes: a code's length

Gaussians have the moments of the dequantised training split: Δ²/12 is added to variances.
"""

import io
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from data.dataset import Dataset
from data.image_tokens import ImageTokens
from metrics.examples import mean_and_error
from metrics.likelihood import bits_per_dim
from metrics.vlb import log_bin_mass
from reproductions.reproduction import Row

NO_LEARNING = "no learning"  # the family of these rows


def baselines(images: Dataset, examples: int) -> Iterator[Row]:
    """Eq. (1)–(5) of the first test images."""
    data, width = ImageTokens(images=images), images.bin_width or 0.0
    train, test = (data.arrays(split, 60_000)["x"] for split in ("train", "test"))
    test, dims = test[:examples], test.shape[1]

    def row(model: str, kind: str, bits: Float[np.ndarray, " n"]) -> Row:
        mean, error = mean_and_error("bits", bits).values()
        return {"model": model, "family": NO_LEARNING, "kind": kind, "bits_per_dim": mean, "stderr": error}

    known = {"family": NO_LEARNING, "kind": "exact"}
    yield {"model": "uniform", **known, "bits_per_dim": math.log2(data.vocabulary)}
    places = data.vocabulary * np.arange(dims)  # of each place its own run of counts
    counts = np.bincount((train + places).reshape(-1), minlength=dims * data.vocabulary).reshape(dims, -1).T + 1.0
    bits = -np.log2(counts / counts.sum(axis=0))
    yield row("histogram of each place", "exact", np.take_along_axis(bits, test, axis=0).mean(axis=1))

    values = lambda levels: levels * width - 1.0  # noqa: E731
    filled = values(test) + width * (np.random.default_rng(0).random(test.shape) - 0.5)
    mean, std = values(train).mean(axis=0), np.sqrt(values(train).var(axis=0) + width**2 / 12.0)
    with jax.enable_x64(True):
        everywhere = lambda moment: jnp.broadcast_to(moment, test.shape)  # noqa: E731
        mass = np.asarray(log_bin_mass(jnp.asarray(values(test)), everywhere(mean), everywhere(std), width))
    yield row("Gaussian of each place", "exact", -mass.sum(axis=1) / (dims * math.log(2.0)))
    standard = (filled - mean) / std
    log_prob = -0.5 * (standard**2 + math.log(2.0 * math.pi)).sum(axis=1) - np.log(std).sum()
    yield row("the same, dequantised", "bound", bits_per_dim(log_prob, dims, width))

    covariance = np.cov(values(train), rowvar=False) + width**2 / 12.0 * np.eye(dims)
    root = np.linalg.cholesky(covariance)
    standard = np.linalg.solve(root, (filled - mean).T)
    log_prob = -0.5 * ((standard**2).sum(axis=0) + dims * math.log(2.0 * math.pi)) - np.log(np.diag(root)).sum()
    yield row("Gaussian, full covariance", "bound", bits_per_dim(log_prob, dims, width))
    length = 8.0 * png_bytes(test, images.shape[1]) / test.size
    yield {"model": "PNG of all as one strip", **known, "bits_per_dim": length}


def png_bytes(levels: Int[np.ndarray, "n d"], width: int) -> int:
    strip = io.BytesIO()
    Image.fromarray(levels.reshape(-1, width).astype(np.uint8)).save(strip, "PNG", optimize=True)
    return strip.getbuffer().nbytes
