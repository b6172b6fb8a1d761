"""FFJORD on a 2-D toy density (eight Gaussians; --data two_moons, checkerboard, swiss_roll, pinwheel).

Grathwohl et al. 1810.01367 §4.1: one continuous flow, its trace exact in the plane. Trained through 10 steps of the
fourth-order Runge–Kutta method, each recomputed in the backward pass; --model.bijection.integrator adaptive takes the
paper's solver, and evaluate.py RUN flow_likelihood says the network calls of either.
"""

from dataclasses import replace

from data.toys import EightGaussians
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.neighbours import TwoSampleAccuracy
from models.concatsquash import ConcatSquash
from models.flows.cnf import CNF
from models.flows.flow import Flow
from models.trace import Exact
from samplers.flow import FlowSampler
from samplers.integrators import FixedStep
from training.experiment import Experiment
from training.optimizer import Optimizer


def flow(width: int, steps: int) -> Flow:
    integrator = FixedStep(method="rk4", steps=steps)
    return Flow(bijection=CNF(net=ConcatSquash(width=width), integrator=integrator, trace=Exact(), time_scale=1.0))


experiment = Experiment(
    data=EightGaussians(),
    model=flow(width=64, steps=10),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=10_000, batch_size=1000), TwoSampleAccuracy(samples=2000)),
    optimizer=Optimizer(learning_rate=3e-3, warmup=100, decay="cosine"),
    steps=3000,
    batch_size=512,
    ema=0.995,
    remat="full",  # of the steps of the integrator
    log_every=200,
    sample_every=1000,
    sample_count=2000,
)

tiny = replace(
    experiment,
    model=flow(width=8, steps=2),
    metrics=(FlowLikelihood(examples=64),),
    steps=4,
    batch_size=16,
    log_every=2,
    sample_every=4,
    sample_count=100,
)
