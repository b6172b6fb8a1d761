"""NICE on MNIST (TFDS), the paper's model and data: 50,000 digits, four couplings of 5×1,000 units, a logistic prior.

Dinh et al. 1410.8516 §5.1, which reports a test log-likelihood of 1980.50 nats of x on [0, 1], best of 1,500 epochs.
Not the paper's: the scale's first value and the units of the couplings (models/flows/nice.py), weight decay, averaged
parameters, a cosine schedule of 40 epochs.
"""

from dataclasses import replace

from data.images import TFDS
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from models.flows.conditioners import MLPConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.nice import NICE
from models.flows.preprocessing import Unit
from models.flows.priors import Logistic
from samplers.flow import FlowSampler
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

EPOCH = 250  # steps of 200 digits

experiment = Experiment(
    data=TFDS(name="mnist", train="train[:50000]"),
    model=Flow(
        bijection=NICE(),
        prior=Logistic(),
        preprocess=Unit(levels=256),
        dequantize=UniformDequantization(levels=256),
        init_batches=100,
    ),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(),
    metrics=(
        FlowLikelihood(examples=10_000, batch_size=500),
        FlowLikelihood(examples=10_000, batch_size=500, split="train"),
    ),
    optimizer=Optimizer(learning_rate=1e-3, decay="cosine", b2=0.99, weight_decay=0.1, clip=0.0),
    steps=40 * EPOCH,
    batch_size=200,
    ema=0.999,
    checkpoints=Checkpoints(every=4 * EPOCH),
    sample_every=10 * EPOCH,
)

tiny = replace(
    experiment,
    model=replace(experiment.model, bijection=NICE(conditioner=MLPConditioner(width=8, depth=1)), init_batches=2),
    metrics=(FlowLikelihood(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=16,
)
