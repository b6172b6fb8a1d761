"""NICE on scikit-learn's digits: nice_mnist with smaller couplings, for 1,437 digits of 17 levels.

Dinh et al. 1410.8516.
"""

from dataclasses import replace

from data.digits import Digits
from experiments import nice_mnist
from metrics.flow_likelihood import FlowLikelihood
from models.flows.conditioners import MLPConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.nice import NICE
from models.flows.preprocessing import Unit
from training.experiment import Checkpoints
from training.optimizer import Optimizer


def on_digits(width: int, depth: int):
    return replace(
        nice_mnist.experiment.model,
        bijection=NICE(conditioner=MLPConditioner(width=width, depth=depth)),
        preprocess=Unit(levels=17),
        dequantize=UniformDequantization(levels=17),
        init_batches=8,
    )


experiment = replace(
    nice_mnist.experiment,
    data=Digits(),
    model=on_digits(width=256, depth=2),
    metrics=(FlowLikelihood(examples=360), FlowLikelihood(examples=1437, split="train")),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine", weight_decay=3.0),
    steps=2000,
    batch_size=128,
    ema=0.998,
    checkpoints=Checkpoints(),
    sample_every=1000,
)

tiny = replace(
    experiment,
    model=on_digits(width=8, depth=1),
    metrics=(FlowLikelihood(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=16,
)
