"""VQ-VAE of scikit-learn's 8x8 digits: 16 codes of 64, in about a minute on two CPU cores."""

from dataclasses import replace

from data.digits import Digits
from losses.reconstruction import Reconstruction
from metrics.reconstruction_error import ReconstructionError
from models.codebook import EMA
from models.observation import Logistic
from models.vit_autoencoder import ViTDecoder, ViTEncoder
from models.vqvae import VQVAE
from samplers.reconstruct import Reconstruct
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Digits(),
    model=VQVAE(
        encoder=ViTEncoder(width=64, patch=2),
        quantizer=EMA(size=64, width=8, restart=0.03),
        decoder=ViTDecoder(width=64, patch=2),
        observation=Logistic(),
    ),
    loss=Reconstruction(),
    sampler=Reconstruct(),
    metrics=(ReconstructionError(),),
    optimizer=Optimizer(learning_rate=2e-3, warmup=50, decay="cosine"),
    steps=1500,
    batch_size=64,
    ema=0.99,
    sample_every=500,
)

tiny = replace(
    experiment,
    model=VQVAE(
        encoder=ViTEncoder(width=8, depth=1, heads=2, patch=2),
        quantizer=EMA(size=8, width=4, restart=0.03),
        decoder=ViTDecoder(width=8, depth=1, heads=2, patch=2),
        observation=Logistic(),
    ),
    metrics=(ReconstructionError(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
