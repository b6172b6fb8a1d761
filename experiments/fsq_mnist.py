"""Finite scalar quantization of MNIST (TFDS): vqvae_mnist with three numbers of eight levels for a code of 512."""

from dataclasses import replace

from experiments import vqvae_mnist as vqvae
from models.fsq import FSQ

experiment = replace(vqvae.experiment, model=replace(vqvae.experiment.model, quantizer=FSQ(levels=(8, 8, 8))))

tiny = replace(vqvae.tiny, model=replace(vqvae.tiny.model, quantizer=FSQ(levels=(3, 3))))
