"""Rectified-flow velocity on a 2-D toy density (two moons; --data eight_gaussians, checkerboard, swiss_roll, pinwheel).

Liu et al. 2209.03003, eq. 1: F is regressed on ε − x₀ along straight lines, and Euler's steps of dx/dt = F draw.
On this path Euler's step is DDIM's.
"""

from dataclasses import replace

from data.toys import TwoMoons
from losses.flow_matching import FlowMatching
from metrics.neighbours import TwoSampleAccuracy
from metrics.straightness import Straightness
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TwoMoons(),
    model=Denoiser(net=MLP(width=128, depth=3), path=Rectified(), predicts="velocity"),
    loss=FlowMatching(),
    sampler=Diffusion(solver=DDIM(eta=0.0), grid=Uniform(), steps=50),
    metrics=(TwoSampleAccuracy(samples=2000), Straightness()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine"),
    steps=4000,
    batch_size=512,
    ema=0.995,
    log_every=200,
    sample_every=1000,
    sample_count=2000,
)

tiny = replace(
    experiment,
    model=Denoiser(net=MLP(width=16, depth=2), path=Rectified(), predicts="velocity"),
    sampler=Diffusion(solver=DDIM(eta=0.0), grid=Uniform(), steps=5),
    metrics=(TwoSampleAccuracy(samples=100),),
    steps=20,
    batch_size=64,
    log_every=5,
    sample_every=10,
    sample_count=100,
)
