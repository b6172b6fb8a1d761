"""Score SDE's variance-exploding path on CIFAR-10 with DDPM's network: the VE column of score SDE's table 1.

Song et al. 2011.13456, app. C and G: σ from 0.01 to 50 for images in [0, 1], so twice that for ours in [−1, 1]; the
loss weighted by σ² (which makes it ε's); parameters averaged at 0.999. The rest is cifar10_ddpm's, and t is uniform on
[0, 1]: the paper trains on 1,000 noise levels, for 1.3 M steps. Drawn by predictor-corrector with 1,000 steps of each,
for which the paper reports FID 3.60 (reverse diffusion). This code has not been trained to the end here.
"""

from dataclasses import replace

from experiments import cifar10_ddpm
from losses.denoising import Denoising
from losses.times import Uniform as UniformTimes
from models.denoiser import Denoiser
from models.model import Net
from paths.grids import Uniform
from paths.schedules import VE
from samplers.diffusion import Diffusion
from samplers.pc import PC


def exploding(net: Net) -> Denoiser:
    return Denoiser(net=net, path=VE(sigma_min=0.02, sigma_max=100.0), predicts="eps")


experiment = replace(
    cifar10_ddpm.experiment,
    model=exploding(cifar10_ddpm.net),
    loss=Denoising(times=UniformTimes()),
    sampler=Diffusion(solver=PC(snr=0.16), grid=Uniform(), steps=1000),
    ema=0.999,
)

tiny = replace(
    cifar10_ddpm.tiny,
    model=exploding(cifar10_ddpm.tiny_net),
    loss=experiment.loss,
    sampler=Diffusion(solver=PC(snr=0.16), grid=Uniform(), steps=3),
    ema=experiment.ema,
)
