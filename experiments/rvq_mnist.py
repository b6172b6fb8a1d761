"""Residual vector quantization of MNIST (TFDS): vqvae_mnist with three levels of 8 codes, the rate of one of 512."""

from dataclasses import replace

from experiments import vqvae_mnist as vqvae
from models.codebook import EMA
from models.residual_vq import ResidualVQ

experiment = replace(
    vqvae.experiment,
    model=replace(
        vqvae.experiment.model,
        quantizer=ResidualVQ(codebook=EMA(size=8, width=8, start="kmeans", restart=0.1), depth=3),
    ),
)

tiny = replace(
    vqvae.tiny, model=replace(vqvae.tiny.model, quantizer=ResidualVQ(codebook=EMA(size=4, width=4), depth=2))
)
