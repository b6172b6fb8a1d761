"""VQ-VAE of MNIST (TFDS): 7x7 codes of 512, with a small vision transformer on either side.

The quantizer is the paper's by moving averages (1711.00937 app. A.1), with dead codes restarted.
"""

from dataclasses import replace

from data.images import TFDS
from losses.reconstruction import Reconstruction
from metrics.reconstruction_error import ReconstructionError
from models.codebook import EMA
from models.observation import Gaussian
from models.vit_autoencoder import ViTDecoder, ViTEncoder
from models.vqvae import VQVAE
from samplers.reconstruct import Reconstruct
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=VQVAE(
        encoder=ViTEncoder(width=128, depth=2),
        quantizer=EMA(size=512, width=8, start="kmeans", restart=0.1),
        decoder=ViTDecoder(width=128, depth=2),
        observation=Gaussian(),
    ),
    loss=Reconstruction(),
    sampler=Reconstruct(),
    metrics=(ReconstructionError(),),
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine"),
    steps=2000,
    batch_size=64,
    ema=0.99,
    checkpoints=Checkpoints(every=500),
    sample_every=1000,
)

tiny = replace(
    experiment,
    model=VQVAE(
        encoder=ViTEncoder(width=8, depth=1, heads=2, patch=7),
        quantizer=EMA(size=8, width=4, restart=0.03),
        decoder=ViTDecoder(width=8, depth=1, heads=2, patch=7),
        observation=Gaussian(),
    ),
    metrics=(ReconstructionError(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
