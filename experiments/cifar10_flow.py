"""Flow matching on CIFAR-10 with minibatch optimal transport and DDPM's U-Net: for a GPU.

Tong et al. 2302.00482 §5 (OT-CFM: Adam 2e-4 with 5,000 warm-up steps, batch 128, EMA 0.9999, 400k steps) on the network
of cifar10_ddpm, drawn by dopri5. It has not been trained here.
"""

from dataclasses import replace

from experiments import cifar10_ddpm
from losses.flow_matching import FlowMatching
from models.denoiser import Denoiser
from models.model import Net
from paths.couplings import MinibatchOT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.adaptive import Dopri5
from samplers.diffusion import Diffusion
from samplers.heun import Heun


def flow(net: Net) -> Denoiser:
    return Denoiser(net=net, path=Rectified(), predicts="velocity")


experiment = replace(
    cifar10_ddpm.experiment,
    model=flow(cifar10_ddpm.net),
    loss=FlowMatching(coupling=MinibatchOT()),
    sampler=Diffusion(solver=Dopri5(), grid=Uniform(), steps=1),
    steps=400_000,
)

tiny = replace(
    cifar10_ddpm.tiny,
    model=flow(cifar10_ddpm.tiny_net),
    loss=experiment.loss,
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=3),
)
