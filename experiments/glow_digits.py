"""Class-conditional Glow on scikit-learn's digits.

Kingma & Dhariwal 1807.03039: two levels of actnorm, invertible 1×1 convolution and affine coupling, half of the
channels factored out between them. The couplings' networks are dense: images are 8×8, and a CPU is quick at that.
The training split is 1,437 digits: without strong weight decay the flow knows them by heart in a thousand steps.
"""

from dataclasses import replace

from data.digits import Digits
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.flows.conditioners import MLPConditioner
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.glow import Glow
from models.flows.preprocessing import Unit
from models.flows.priors import ClassNormal
from samplers.flow import FlowSampler
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Digits(),
    model=Flow(
        bijection=Glow(levels=2, steps=8, conditioner=MLPConditioner(width=128, num_classes=10)),
        prior=ClassNormal(num_classes=10),
        preprocess=Unit(levels=17),
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
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine", weight_decay=6.0),
    steps=3000,
    batch_size=256,
    ema=0.998,
    sample_every=1000,
)

tiny = replace(
    experiment,
    model=replace(experiment.model, bijection=Glow(levels=2, steps=2, conditioner=MLPConditioner(width=8, depth=1))),
    metrics=(FlowLikelihood(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
