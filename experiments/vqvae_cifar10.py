"""The VQ-VAE of CIFAR-10 with the paper's sizes, for a GPU: K = 512, β = 0.25, 8x8x10 codes, convolutions of 256.

1711.00937 §4.1 reports 4.67 bits/dim (a VAE of the same encoder 4.51, VIMCO 5.14). 10 codes a place share one codebook
of 512. Not trained here: there was no GPU at hand.
"""

from dataclasses import replace

from data.images import TFDS
from losses.reconstruction import Reconstruction
from metrics.reconstruction_error import ReconstructionError
from models.autoencoder import ConvDecoder, ConvEncoder
from models.codebook import VQ
from models.observation import Gaussian
from models.vqvae import VQVAE
from samplers.reconstruct import Reconstruct
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="cifar10"),
    model=VQVAE(
        encoder=ConvEncoder(width=256, depth=2),
        quantizer=VQ(size=512, width=64, heads=10, beta=0.25),
        decoder=ConvDecoder(width=256, depth=2),
        observation=Gaussian(),
    ),
    loss=Reconstruction(),
    sampler=Reconstruct(),
    metrics=(ReconstructionError(),),
    optimizer=Optimizer(learning_rate=2e-4),
    steps=250_000,
    batch_size=128,
    ema=0.999,
    sample_every=10_000,
)

tiny = replace(
    experiment,
    model=VQVAE(
        encoder=ConvEncoder(width=8, depth=1),
        quantizer=VQ(size=8, width=2, heads=2),
        decoder=ConvDecoder(width=8, depth=1),
        observation=Gaussian(),
    ),
    metrics=(ReconstructionError(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
