"""DDPM on MNIST (TFDS) with a small U-Net: linear betas, T = 1000, L_simple, Adam 2e-4.

Ho et al. 2006.11239 has no MNIST row. Taken from its CIFAR-10 settings: T, betas, loss, learning rate, batch, dropout.
Ours, for a smaller set: a narrower U-Net of three levels with adaptive group norm, EMA 0.999, 1,000 warm-up steps, and
DDIM in 50 steps to draw.
"""

from dataclasses import replace

from data.images import TFDS
from losses.denoising import Denoising
from losses.times import Discrete
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.unet import UNet
from paths.grids import Uniform
from paths.schedules import DDPMLinear
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from samplers.transforms import Clip
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Denoiser(
        net=UNet(width=64, multipliers=(1, 2, 2), blocks=2, attention=(14,), dropout=0.1),
        path=DDPMLinear(),
        predicts="eps",
    ),
    loss=Denoising(times=Discrete(steps=1000)),
    sampler=Diffusion(solver=DDIM(eta=0.0), grid=Uniform(), steps=50, transforms=(Clip(),)),
    metrics=(TwoSampleAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=2e-4, warmup=1000),
    steps=20_000,
    batch_size=128,
    ema=0.999,
    checkpoints=Checkpoints(every=1000, latest=2),
    sample_every=2000,
)

tiny = replace(
    experiment,
    model=Denoiser(net=UNet(width=8, multipliers=(1, 2), blocks=1, attention=(14,)), path=DDPMLinear(), predicts="eps"),
    sampler=Diffusion(solver=DDIM(eta=0.0), grid=Uniform(), steps=3, transforms=(Clip(),)),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=2e-4),
    steps=6,
    batch_size=8,
    log_every=2,
    sample_every=6,
    sample_count=4,
)
