"""Class-conditional TarFlow on MNIST (TFDS): four blocks of causal transformers over 7×7 patches of 4×4 pixels.

Zhai et al. 2412.06329. Uniform dequantisation, for bits/dim; the paper's own figure on ImageNet 64×64 is 2.99.
"""

from dataclasses import replace

from data.images import TFDS
from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.neighbours import TwoSampleAccuracy
from models.flows.causal import CausalTransformer
from models.flows.combinators import Chain
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.preprocessing import Logit, Unit
from models.flows.tarflow import TarFlow
from samplers.flow import FlowSampler
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Flow(
        bijection=TarFlow(patch=4, blocks=4, net=CausalTransformer(width=128, depth=4, heads=4, num_classes=10)),
        preprocess=Chain(parts=(Unit(levels=256), Logit(alpha=0.01))),
        dequantize=UniformDequantization(levels=256),
    ),
    loss=NegativeLogLikelihood(),
    sampler=FlowSampler(),
    metrics=(FlowLikelihood(examples=10_000), TwoSampleAccuracy()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
    steps=20_000,
    batch_size=128,
    ema=0.999,
    checkpoints=Checkpoints(every=500),
    sample_every=2000,
)

tiny = replace(
    experiment,
    model=replace(
        experiment.model,
        bijection=TarFlow(patch=7, blocks=2, net=CausalTransformer(width=8, depth=1, heads=2, num_classes=10)),
    ),
    metrics=(FlowLikelihood(examples=8, batch_size=8),),
    steps=2,
    batch_size=8,
    log_every=1,
    sample_every=2,
    sample_count=10,
)
