"""A transformer over the codes of vqvae_mnist, told the class: 49 codes of 512, one after the other.

Train vqvae_mnist first, or name another first stage: `--data.codes RUN`. `sample.py` decodes what is drawn.
"""

from dataclasses import replace

from losses.sequence import NextToken
from metrics.class_accuracy import ClassAccuracy
from metrics.confidence import Confidence
from metrics.two_stage import TwoStageLikelihood
from models.language_model import LanguageModel
from models.transformer import Transformer
from samplers.autoregressive import Decoding
from training.codes import Codes
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Codes(codes="runs/vqvae_mnist"),
    model=LanguageModel(
        backbone=Transformer(width=128, depth=4, heads=4, dropout=0.1), from_start=True, num_classes=10
    ),
    loss=NextToken(),
    sampler=Decoding(),
    metrics=(TwoStageLikelihood(), Confidence(), ClassAccuracy()),
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine", weight_decay=0.1),
    steps=2000,
    batch_size=64,
    ema=0.995,
    checkpoints=Checkpoints(every=500),
    sample_every=1000,
)

tiny = replace(
    experiment,
    data=Codes(codes="runs/vqvae_digits_tiny"),
    model=LanguageModel(backbone=Transformer(width=8, depth=1, heads=2), from_start=True, num_classes=10),
    metrics=(TwoStageLikelihood(examples=16), Confidence(samples=16)),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=4,
)
