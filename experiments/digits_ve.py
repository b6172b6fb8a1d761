"""Score SDE's variance-exploding path on scikit-learn's 8x8 digits with a residual MLP: a minute on two CPU cores.

Song et al. 2011.13456 (VE, σ from 0.01 to about the largest distance between two images), with EDM's face, times and
Heun sampler (2206.00364) in place of the paper's. Of 1,000 samples, measured by `python train.py digits_ve` (seed 0,
1,800 steps of batch 256 in 65 s, 2 CPU cores, 2026-11-23): two-sample accuracy 0.561, Fréchet distance 0.581 in raw
pixels (the training split: 0.465 and 0.414). `reproduce.py score_sde_samplers` compares the paper's samplers on it.
"""

from dataclasses import replace

from data.digits import Digits
from losses.denoising import Denoising
from losses.times import LogNormal
from metrics.frechet import FrechetDistance
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.grids import Karras
from paths.schedules import VE
from samplers.diffusion import Diffusion
from samplers.edm import EDM
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

path = VE(sigma_max=10.0)  # 9.6 between the two most distant images

experiment = Experiment(
    data=Digits(),
    model=Denoiser(net=MLP(width=384, depth=3), path=path, predicts="edm", sigma_data=0.75),
    loss=Denoising(times=LogNormal(mean=-0.8, std=1.2, draw="low_discrepancy")),
    sampler=Diffusion(solver=EDM(), grid=Karras(), steps=25),
    metrics=(TwoSampleAccuracy(), FrechetDistance(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine"),
    steps=1800,
    batch_size=256,
    ema=0.995,
    checkpoints=Checkpoints(every=300),
    sample_every=600,
)

tiny = replace(
    experiment,
    model=Denoiser(net=MLP(width=32, depth=2), path=path, predicts="edm", sigma_data=0.75),
    sampler=Diffusion(solver=EDM(), grid=Karras(), steps=5),
    metrics=(TwoSampleAccuracy(samples=64),),
    steps=20,
    batch_size=32,
    log_every=5,
    sample_every=10,
    sample_count=4,
)
