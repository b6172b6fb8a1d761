"""TarFlow on scikit-learn's digits: four blocks of causal transformers over 4×4 patches of 2×2 pixels.

Zhai et al. 2412.06329.
"""

from dataclasses import replace

from data.digits import Digits
from experiments import tarflow_mnist
from metrics.flow_likelihood import FlowLikelihood
from models.flows.causal import CausalTransformer
from models.flows.combinators import Chain
from models.flows.dequantization import UniformDequantization
from models.flows.preprocessing import Logit, Unit
from models.flows.tarflow import TarFlow
from training.experiment import Checkpoints
from training.optimizer import Optimizer


def on_digits(bijection: TarFlow):
    return replace(
        tarflow_mnist.experiment.model,
        bijection=bijection,
        preprocess=Chain(parts=(Unit(levels=17), Logit(alpha=0.05))),
        dequantize=UniformDequantization(levels=17),
    )


experiment = replace(
    tarflow_mnist.experiment,
    data=Digits(),
    model=on_digits(
        TarFlow(patch=2, blocks=4, net=CausalTransformer(width=64, depth=2, heads=2, num_classes=10)),
    ),
    metrics=(FlowLikelihood(examples=360), FlowLikelihood(examples=1437, split="train")),
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine", weight_decay=1.0),
    steps=1500,
    batch_size=128,
    ema=0.998,
    checkpoints=Checkpoints(),
    sample_every=500,
)

tiny = replace(
    experiment,
    model=on_digits(TarFlow(patch=4, blocks=2, net=CausalTransformer(width=8, depth=1, heads=2, num_classes=10))),
    metrics=(FlowLikelihood(examples=8, batch_size=8),),
    steps=2,
    batch_size=8,
    log_every=1,
    sample_every=2,
    sample_count=10,
)
