"""Score SDE's variance-exploding path on CIFAR-10 with DDPM's network: the VE column of score SDE's table 1.

Song et al. 2011.13456, app. C and G: σ from 0.01 to 50 for images in [0, 1], so twice that for ours in [−1, 1]; the
loss weighted by σ² (which makes it ε's); parameters averaged at 0.999. The rest is cifar10_ddpm's, and t is uniform on
[0, 1]: the paper trains on 1,000 noise levels, for 1.3 M steps. Drawn by predictor-corrector with 1,000 steps of each,
for which the paper reports FID 3.60 (reverse diffusion). This code has not been trained to the end here.
"""

from dataclasses import replace

from data.images import TFDS
from losses.denoising import Denoising
from losses.times import Uniform as UniformTimes
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.unet import UNet
from paths.grids import Uniform
from paths.schedules import VE
from samplers.diffusion import Diffusion
from samplers.pc import PC
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

path = VE(sigma_min=0.02, sigma_max=100.0)

experiment = Experiment(
    data=TFDS(name="cifar10", flip=True),
    model=Denoiser(
        net=UNet(
            width=128,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention=(16,),
            dropout=0.1,
            scale_shift=False,
        ),
        path=path,
        predicts="eps",
    ),
    loss=Denoising(times=UniformTimes()),
    sampler=Diffusion(solver=PC(snr=0.16), grid=Uniform(), steps=1000),
    metrics=(TwoSampleAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=2e-4, warmup=5000),
    steps=800_000,
    batch_size=128,
    ema=0.999,
    checkpoints=Checkpoints(every=5000, latest=2, keep_every=100_000),
    sample_every=20_000,
)

tiny = replace(
    experiment,
    model=Denoiser(
        net=UNet(width=8, multipliers=(1, 2), blocks=1, attention=(16,), scale_shift=False), path=path, predicts="eps"
    ),
    sampler=Diffusion(solver=PC(snr=0.16), grid=Uniform(), steps=3),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=2e-4),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
