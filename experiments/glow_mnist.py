"""Class-conditional Glow on MNIST (TFDS): two levels, as 28 divides by 4 and not by 8.

Kingma & Dhariwal 1807.03039; FFJORD's table 2 (1810.01367) reports 1.05 bits/dim of a Glow on MNIST.
"""

from dataclasses import replace

from data.images import TFDS
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.neighbours import TwoSampleAccuracy
from models.flows.conditioners import ConvConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.glow import Glow
from models.flows.preprocessing import Unit
from models.flows.priors import ClassNormal
from samplers.flow import FlowSampler
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Flow(
        bijection=Glow(levels=2, steps=16, conditioner=ConvConditioner(width=128)),
        prior=ClassNormal(num_classes=10),
        preprocess=Unit(levels=256),
        dequantize=UniformDequantization(levels=256),
    ),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(temperature=0.7),
    metrics=(FlowLikelihood(examples=10_000), TwoSampleAccuracy()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=500, decay="cosine"),
    steps=50_000,
    batch_size=128,
    ema=0.999,
    checkpoints=Checkpoints(every=1000),
    sample_every=2000,
)

tiny = replace(
    experiment,
    model=replace(experiment.model, bijection=Glow(levels=2, steps=2, conditioner=ConvConditioner(width=4))),
    metrics=(FlowLikelihood(examples=8, batch_size=8),),
    steps=2,
    batch_size=8,
    log_every=1,
    sample_every=2,
    sample_count=10,
)
