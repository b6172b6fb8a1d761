"""Flow matching on CIFAR-10 with minibatch optimal transport and DDPM's U-Net: for a GPU.

Tong et al. 2302.00482 §5 (OT-CFM: Adam 2e-4 with 5,000 warm-up steps, batch 128, EMA 0.9999, 400k steps) on the network
of cifar10_ddpm, drawn by dopri5. It has not been trained here.
"""

from dataclasses import replace

from data.images import TFDS
from losses.flow_matching import FlowMatching
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.unet import UNet
from paths.couplings import MinibatchOT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.adaptive import Dopri5
from samplers.diffusion import Diffusion
from samplers.heun import Heun
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

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
        path=Rectified(),
        predicts="velocity",
    ),
    loss=FlowMatching(coupling=MinibatchOT()),
    sampler=Diffusion(solver=Dopri5(), grid=Uniform(), steps=1),
    metrics=(TwoSampleAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=2e-4, warmup=5000),
    steps=400_000,
    batch_size=128,
    ema=0.9999,
    checkpoints=Checkpoints(every=5000, latest=2, keep_every=100_000),
    sample_every=20_000,
)

tiny = replace(
    experiment,
    model=Denoiser(
        net=UNet(width=8, multipliers=(1, 2), blocks=1, attention=(16,), scale_shift=False),
        path=Rectified(),
        predicts="velocity",
    ),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=3),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=2e-4),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
