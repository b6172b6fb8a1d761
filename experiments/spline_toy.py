"""Neural spline flow on a 2-D toy density (two moons; --data eight_gaussians, checkerboard, swiss_roll, pinwheel).

Durkan et al. 1906.04032: rational-quadratic spline couplings, the two coordinates in turn.
"""

from dataclasses import replace

from data.toys import TwoMoons
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.neighbours import TwoSampleAccuracy
from models.flows.combinators import Chain
from models.flows.conditioners import MLPConditioner
from models.flows.coupling import Coupling
from models.flows.flow import Flow
from models.flows.permutations import Reverse
from models.flows.spline import RationalQuadratic
from models.flows.stacked import Stacked
from samplers.flow import FlowSampler
from training.experiment import Experiment
from training.optimizer import Optimizer


def flow(depth: int, width: int) -> Flow:
    coupling = Coupling(transform=RationalQuadratic(bins=12, bound=4.0), conditioner=MLPConditioner(width=width))
    return Flow(bijection=Stacked(block=Chain(parts=(coupling, Reverse())), depth=depth))


experiment = Experiment(
    data=TwoMoons(),
    model=flow(depth=8, width=128),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=10_000, batch_size=1000), TwoSampleAccuracy(samples=2000)),
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
    model=flow(depth=2, width=8),
    metrics=(FlowLikelihood(examples=64),),
    steps=20,
    batch_size=64,
    log_every=5,
    sample_every=10,
    sample_count=100,
)
