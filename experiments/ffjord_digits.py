"""FFJORD on scikit-learn's digits: one continuous flow of 64 pixels, its field of matrix products alone.

Grathwohl et al. 1810.01367, with the regularisers of Finlay et al. 2002.02798 at the 0.01 they use. Hutchinson's trace,
one draw a solve, through 6 steps of the fourth-order Runge–Kutta method. What fixed steps say of a density is not quite
one: `evaluate.py RUN flow_likelihood` is by the same steps, reproductions/bits_per_dim.py by an adaptive solve.
"""

from dataclasses import replace

from data.digits import Digits
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from models.concatsquash import ConcatSquash
from models.flows.cnf import CNF
from models.flows.combinators import Chain
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.preprocessing import Logit, Unit
from models.trace import Hutchinson
from samplers.flow import FlowSampler
from samplers.integrators import FixedStep
from training.experiment import Experiment
from training.optimizer import Optimizer


def flow(width: int, steps: int) -> Flow:
    integrator = FixedStep(method="rk4", steps=steps)
    return Flow(
        bijection=CNF(net=ConcatSquash(width=width), integrator=integrator, trace=Hutchinson(), time_scale=1.0),
        preprocess=Chain(parts=(Unit(levels=17), Logit(alpha=0.05))),
        dequantize=UniformDequantization(levels=17),
    )


experiment = Experiment(
    data=Digits(),
    model=flow(width=128, steps=6),
    loss=NegativeLogLikelihood(kinetic=0.01, jacobian=0.01),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=360), FlowLikelihood(examples=1437, split="train")),
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine", weight_decay=0.1),
    steps=2000,
    batch_size=128,
    ema=0.998,
    remat="full",  # of the steps of the integrator
    sample_every=1000,
)

tiny = replace(
    experiment,
    model=flow(width=8, steps=2),
    metrics=(FlowLikelihood(examples=16),),
    steps=2,
    batch_size=8,
    log_every=1,
    sample_every=2,
    sample_count=10,
)
