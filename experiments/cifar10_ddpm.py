"""DDPM on CIFAR-10 with the paper's settings: 35.7 M parameters, T = 1000, 800k steps. The paper's FID: 3.17.

Ho et al. 2006.11239, §4 and app. B: U-Net of width 128 with multipliers 1, 2, 2, 2, two blocks a level, attention at
16×16, dropout 0.1, the time embedding added; linear betas; Adam 2e-4 with 5,000 steps of warm-up, gradients clipped at
1, batch 128, parameters averaged at 0.9999, images mirrored at random; 1,000 ancestral steps. 3.17 is the paper's
number (table 1, FID against the training set from 50,000 samples); this code has not been run for 800k steps.
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
from samplers.ddpm import DDPM
from samplers.diffusion import Diffusion
from samplers.transforms import Clip
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

net = UNet(width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), dropout=0.1, scale_shift=False)
tiny_net = UNet(width=8, multipliers=(1, 2), blocks=1, attention=(16,), scale_shift=False)

experiment = Experiment(
    data=TFDS(name="cifar10", flip=True),
    model=Denoiser(net=net, path=DDPMLinear(), predicts="eps"),
    loss=Denoising(times=Discrete(steps=1000)),
    sampler=Diffusion(solver=DDPM(variance="beta"), grid=Uniform(), steps=1000, transforms=(Clip(),)),
    metrics=(TwoSampleAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=2e-4, warmup=5000),
    steps=800_000,
    batch_size=128,
    ema=0.9999,
    checkpoints=Checkpoints(every=5000, latest=2, keep_every=100_000),
    sample_every=20_000,
)

tiny = replace(
    experiment,
    model=Denoiser(net=tiny_net, path=DDPMLinear(), predicts="eps"),
    sampler=Diffusion(solver=DDPM(variance="beta"), grid=Uniform(), steps=3, transforms=(Clip(),)),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=2e-4),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
