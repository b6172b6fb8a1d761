"""Masked autoregressive flow on a table (scikit-learn's breast cancer set; --data.name TABLE.npy or .csv).

Papamakarios et al. 1705.07057: five autoregressions of two hidden layers, the columns' order reversed between them.
The embedded table has 512 rows for 30 columns: a flow overfits it in seconds, so this one is small and stops early.
"""

from dataclasses import replace

from data.tabular import Tabular
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from models.flows.autoregressive import MADE, Autoregressive
from models.flows.combinators import Chain
from models.flows.flow import Flow
from models.flows.permutations import Reverse
from models.flows.stacked import Stacked
from samplers.flow import FlowSampler
from training.experiment import Experiment
from training.optimizer import Optimizer


def flow(depth: int, width: int) -> Flow:
    layer = Chain(parts=(Autoregressive(net=MADE(width=width, depth=2)), Reverse()))
    return Flow(bijection=Stacked(block=layer, depth=depth))


experiment = Experiment(
    data=Tabular(),
    model=flow(depth=5, width=64),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=10_000), FlowLikelihood(examples=10_000, split="train")),
    optimizer=Optimizer(learning_rate=1e-3, weight_decay=1e-2),
    steps=600,
    batch_size=128,
    ema=0.99,
)

tiny = replace(
    experiment,
    model=flow(depth=2, width=8),
    metrics=(FlowLikelihood(examples=16),),
    steps=4,
    batch_size=16,
    log_every=2,
)
