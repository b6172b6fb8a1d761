"""Glow on CIFAR-10 (TFDS) with the paper's sizes: L 3, K 32, affine couplings of 512 channels. Wants a GPU.

Kingma & Dhariwal 1807.03039 §5, table 2, which reports 3.35 bits/dim. Not trained to the end here. The reversible
backward pass keeps one state in eight, so memory hardly grows with K.
"""

from dataclasses import replace

from data.images import TFDS
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from models.flows.conditioners import ConvConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.glow import Glow
from models.flows.preprocessing import Unit
from samplers.flow import FlowSampler
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="cifar10", flip=True),
    model=Flow(
        bijection=Glow(levels=3, steps=32, conditioner=ConvConditioner(width=512)),
        preprocess=Unit(levels=256),
        dequantize=UniformDequantization(levels=256),
    ),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(temperature=0.7),
    metrics=(FlowLikelihood(examples=10_000),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=8000),
    steps=1_000_000,
    batch_size=64,
    ema=0.9995,
    remat="reversible(8)",
    checkpoints=Checkpoints(every=5000),
    sample_every=10_000,
)

tiny = replace(
    experiment,
    model=replace(
        experiment.model,
        bijection=Glow(levels=3, steps=2, conditioner=ConvConditioner(width=4)),
    ),
    metrics=(FlowLikelihood(examples=8, batch_size=8),),
    steps=2,
    batch_size=8,
    remat="reversible(1)",
    log_every=1,
    sample_every=2,
    sample_count=4,
)
