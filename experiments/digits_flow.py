"""Class-conditional rectified flow on scikit-learn's 8x8 digits with a small DiT."""

from dataclasses import replace

from data.digits import Digits
from losses.flow_matching import FlowMatching
from losses.times import LogitNormal
from metrics.frechet import FrechetDistance
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.dit import DiT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.diffusion import Diffusion
from samplers.heun import Heun
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Digits(),
    model=Denoiser(
        net=DiT(width=128, depth=4, heads=4, patch=2, num_classes=10), path=Rectified(), predicts="velocity"
    ),
    loss=FlowMatching(times=LogitNormal(draw="low_discrepancy"), label_dropout=0.1),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=20),
    metrics=(TwoSampleAccuracy(), FrechetDistance(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine"),
    steps=1600,
    batch_size=128,
    ema=0.995,
    remat="full",  # a scan that keeps every block's activations is slower on a CPU than one that recomputes them
    checkpoints=Checkpoints(every=500),
    sample_every=800,
)

tiny = replace(
    experiment,
    model=Denoiser(net=DiT(width=16, depth=2, heads=2, patch=4, num_classes=10), path=Rectified(), predicts="velocity"),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=3),
    metrics=(TwoSampleAccuracy(samples=64),),
    steps=20,
    batch_size=32,
    log_every=5,
    sample_every=10,
    sample_count=10,
)
