"""DDPM on scikit-learn's 8x8 digits with a residual MLP: the demo, two minutes on two CPU cores.

Ho et al. 2006.11239 (linear betas, T = 1000, L_simple), drawn by DDIM in 50 steps (2010.02502).
"""

from dataclasses import replace

from data.digits import Digits
from losses.denoising import Denoising
from losses.times import Uniform as UniformTimes
from metrics.frechet import FrechetDistance
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.grids import Quadratic
from paths.schedules import DDPMLinear
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Digits(),
    model=Denoiser(net=MLP(width=384, depth=4), path=DDPMLinear(), predicts="eps"),
    loss=Denoising(times=UniformTimes(draw="low_discrepancy")),
    sampler=Diffusion(solver=DDIM(eta=0.0), grid=Quadratic(), steps=50),
    metrics=(TwoSampleAccuracy(), FrechetDistance(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine"),
    steps=2000,
    batch_size=256,
    ema=0.995,
    sample_every=500,
)

tiny = replace(
    experiment,
    model=Denoiser(net=MLP(width=32, depth=2), path=DDPMLinear(), predicts="eps"),
    sampler=Diffusion(solver=DDIM(eta=0.0), grid=Quadratic(), steps=5),
    metrics=(TwoSampleAccuracy(samples=64),),
    steps=20,
    batch_size=32,
    log_every=5,
    sample_every=10,
    sample_count=4,
)
