"""Score SDE's variance-exploding path on MNIST (TFDS) with the residual MLP of mnist_mlp: 40 minutes on two busy cores.

Song et al. 2011.13456 (VE, σ from 0.01 to about the largest distance between two images) with EDM's face, times and
Heun sampler (2206.00364). Measured by `python train.py mnist_ve` (seed 0, 10,000 steps in 42 minutes on 2 CPU cores
busy with other work, 2026-11-23): two-sample accuracy 0.576 (training split 0.525).
"""

from dataclasses import replace

from data.images import TFDS
from losses.denoising import Denoising
from losses.times import LogNormal
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.grids import Karras
from paths.schedules import VE
from samplers.diffusion import Diffusion
from samplers.edm import EDM
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

path = VE(sigma_max=30.0)  # 30.1 between the two most distant of 1,000 images

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Denoiser(net=MLP(width=896, depth=3), path=path, predicts="edm", sigma_data=0.6),
    loss=Denoising(times=LogNormal(mean=-0.4, std=1.4, draw="low_discrepancy")),
    sampler=Diffusion(solver=EDM(), grid=Karras(), steps=25),
    metrics=(TwoSampleAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
    steps=10_000,
    batch_size=256,
    ema=0.999,
    checkpoints=Checkpoints(every=1000),
    sample_every=2000,
)

tiny = replace(
    experiment,
    model=Denoiser(net=MLP(width=32, depth=2), path=path, predicts="edm", sigma_data=0.6),
    sampler=Diffusion(solver=EDM(), grid=Karras(), steps=3),
    metrics=(TwoSampleAccuracy(samples=16),),
    steps=6,
    batch_size=8,
    log_every=2,
    sample_every=6,
    sample_count=4,
)
