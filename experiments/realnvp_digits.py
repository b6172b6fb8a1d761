"""RealNVP on scikit-learn's digits: checkerboard and channel couplings with small residual networks, two scales.

Dinh et al. 1605.08803. The training split is 1,437 digits, hence the strong weight decay.
"""

from dataclasses import replace

from data.digits import Digits
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.flows.combinators import Chain
from models.flows.conditioners import ResNetConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.preprocessing import Logit, Unit
from models.flows.realnvp import RealNVP
from samplers.flow import FlowSampler
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Digits(),
    model=Flow(
        bijection=RealNVP(scales=2, couplings=3, conditioner=ResNetConditioner(width=24, depth=2)),
        preprocess=Chain(parts=(Unit(levels=17), Logit(alpha=0.05))),
        dequantize=UniformDequantization(levels=17),
    ),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(temperature=0.8),
    metrics=(
        FlowLikelihood(examples=360),
        FlowLikelihood(examples=1437, split="train"),
        TwoSampleAccuracy(),
        NearestTrainDistance(),
    ),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine", weight_decay=3.0),
    steps=400,
    batch_size=128,
    ema=0.99,
    sample_every=200,
)

tiny = replace(
    experiment,
    model=replace(
        experiment.model, bijection=RealNVP(scales=1, couplings=1, conditioner=ResNetConditioner(width=4, depth=1))
    ),
    metrics=(FlowLikelihood(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
