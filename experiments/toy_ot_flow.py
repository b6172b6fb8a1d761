"""Minibatch optimal transport on a 2-D toy density: straighter paths than independent pairs (two moons; --data others).

Tong et al. 2302.00482: flow matching whose noise is assigned to data at least cost, batch by batch. toy_flow otherwise.
"""

from dataclasses import replace

from data.toys import TwoMoons
from losses.flow_matching import FlowMatching
from metrics.neighbours import TwoSampleAccuracy
from metrics.straightness import Straightness
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.couplings import MinibatchOT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TwoMoons(),
    model=Denoiser(net=MLP(width=128, depth=3), path=Rectified(), predicts="velocity"),
    loss=FlowMatching(coupling=MinibatchOT()),
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
