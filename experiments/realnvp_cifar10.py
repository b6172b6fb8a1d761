"""RealNVP on CIFAR-10 (TFDS) with the paper's sizes: 64 feature maps, 8 residual blocks, two scales. Wants a GPU.

Dinh et al. 1605.08803 §4.1, table 1, which reports 3.49 bits/dim. Not trained to the end here.
"""

from dataclasses import replace

from data.images import TFDS
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from models.flows.combinators import Chain
from models.flows.conditioners import ResNetConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.preprocessing import Logit, Unit
from models.flows.realnvp import RealNVP
from samplers.flow import FlowSampler
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="cifar10", flip=True),
    model=Flow(
        bijection=RealNVP(scales=2, couplings=3, conditioner=ResNetConditioner(width=64, depth=8)),
        preprocess=Chain(parts=(Unit(levels=256), Logit(alpha=0.05))),
        dequantize=UniformDequantization(levels=256),
    ),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=10_000),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=1000, weight_decay=5e-5),
    steps=300_000,
    batch_size=64,
    ema=0.9995,
    checkpoints=Checkpoints(every=5000),
    sample_every=10_000,
)

tiny = replace(
    experiment,
    model=replace(experiment.model, bijection=RealNVP(couplings=1, conditioner=ResNetConditioner(width=4, depth=1))),
    metrics=(FlowLikelihood(examples=8, batch_size=8),),
    steps=2,
    batch_size=8,
    log_every=1,
    sample_every=2,
    sample_count=4,
)
