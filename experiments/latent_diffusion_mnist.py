"""Class-conditional rectified flow in the latents of vqvae_mnist, 7x7x8 numbers in place of 784 pixels.

Latent diffusion (2112.10752): mnist_flow with a narrower network and patches of 1; what is drawn is decoded by way of
the nearest codes. Train vqvae_mnist first, or name another first stage: `--data.codes RUN`.
"""

from dataclasses import replace

from experiments import mnist_flow as pixels
from metrics.class_accuracy import ClassAccuracy
from metrics.confidence import Confidence
from metrics.neighbours import TwoSampleAccuracy
from models.denoiser import Denoiser
from models.dit import DiT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.diffusion import Diffusion
from samplers.heun import Heun
from training.codes import Latents
from training.optimizer import Optimizer

experiment = replace(
    pixels.experiment,
    data=Latents(codes="runs/vqvae_mnist"),
    model=Denoiser(
        net=DiT(width=128, depth=4, heads=4, patch=1, num_classes=10), path=Rectified(), predicts="velocity"
    ),
    metrics=(Confidence(), ClassAccuracy(), TwoSampleAccuracy()),
    steps=2000,
)

tiny = replace(
    experiment,
    data=Latents(codes="runs/vqvae_digits_tiny"),
    model=Denoiser(net=DiT(width=16, depth=1, heads=2, patch=1, num_classes=10), path=Rectified(), predicts="velocity"),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=3),
    metrics=(Confidence(samples=16),),
    optimizer=Optimizer(learning_rate=1e-3),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
