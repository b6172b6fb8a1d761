"""FFJORD on MNIST (TFDS): two scales of two continuous flows each, small convolutional networks. Wants a GPU.

Grathwohl et al. 1810.01367 §4.2, table 2, which reports 0.99 bits/dim; with the regularisers of Finlay et al.
2002.02798 at the 0.01 they use. Hutchinson's trace, one draw a solve. Not trained to the end here.
"""

from dataclasses import replace

from data.images import TFDS
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from models.flows.bijection import Bijection
from models.flows.cnf import CNF
from models.flows.combinators import Chain, Invert
from models.flows.coupling import FactorOut
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.preprocessing import Logit, Unit
from models.flows.reshaping import Squeeze
from models.mlp import MLP
from models.model import Net
from models.ode import Integrator
from models.trace import Hutchinson
from models.unet import UNet
from samplers.flow import FlowSampler
from samplers.integrators import FixedStep
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer


def scales(net: Net, integrator: Integrator) -> Bijection:
    """Two flows of the image; squeezed, half of the channels left; two flows of the other half."""
    two = tuple(CNF(net=net, integrator=integrator, trace=Hutchinson()) for _ in range(2))
    return Chain(parts=(*two, Squeeze(), FactorOut(bijection=Chain(parts=two)), Invert(bijection=Squeeze())))


def flow(net: Net, integrator: Integrator) -> Flow:
    return Flow(
        bijection=scales(net, integrator),
        preprocess=Chain(parts=(Unit(levels=256), Logit(alpha=1e-6))),
        dequantize=UniformDequantization(levels=256),
    )


experiment = Experiment(
    data=TFDS(name="mnist"),
    model=flow(UNet(width=32, multipliers=(1, 2), blocks=1, attention=()), FixedStep(method="rk4", steps=8)),
    loss=NegativeLogLikelihood(kinetic=0.01, jacobian=0.01),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=1000),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=1000),
    steps=60_000,
    batch_size=256,
    ema=0.999,
    remat="full",  # of the steps of the integrator
    checkpoints=Checkpoints(every=1000),
    sample_every=2000,
)

tiny = replace(
    experiment,
    model=flow(MLP(width=4, depth=1), FixedStep(method="euler", steps=1)),
    metrics=(),
    steps=1,
    batch_size=8,
    log_every=1,
    sample_every=0,
)
