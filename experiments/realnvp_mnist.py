"""RealNVP on MNIST (TFDS): realnvp_cifar10 with half its feature maps and 2 residual blocks. Wants a GPU.

Dinh et al. 1605.08803 has no MNIST row; FFJORD's table 2 (1810.01367) reports 1.06 bits/dim of a RealNVP on it.
"""

from dataclasses import replace

from data.images import TFDS
from experiments import realnvp_cifar10
from metrics.flow_likelihood import FlowLikelihood
from models.flows.conditioners import ResNetConditioner
from models.flows.realnvp import RealNVP
from training.experiment import Checkpoints
from training.optimizer import Optimizer

experiment = replace(
    realnvp_cifar10.experiment,
    data=TFDS(name="mnist"),
    model=replace(
        realnvp_cifar10.experiment.model,
        bijection=RealNVP(scales=2, couplings=3, conditioner=ResNetConditioner(width=32, depth=2)),
    ),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine", weight_decay=5e-5),
    steps=20_000,
    batch_size=64,
    ema=0.999,
    checkpoints=Checkpoints(every=500),
    sample_every=2000,
)

tiny = replace(
    realnvp_cifar10.tiny,
    data=TFDS(name="mnist"),
    model=replace(
        experiment.model, bijection=RealNVP(scales=1, couplings=1, conditioner=ResNetConditioner(width=4, depth=1))
    ),
    metrics=(FlowLikelihood(examples=8, batch_size=8),),
)
