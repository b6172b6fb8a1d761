"""Digits as sequences of pixels in raster order, 17 levels each, by a transformer told the class. Exact bits/dim.

`--data.images tfds --data.images.name mnist` and `--model.backbone.context 784` for MNIST's 784 pixels of 256 levels.
"""

from dataclasses import replace

from data.digits import Digits
from data.image_tokens import ImageTokens
from losses.sequence import NextToken
from metrics.neighbours import TwoSampleAccuracy
from metrics.token_likelihood import TokenLikelihood
from models.language_model import LanguageModel
from models.transformer import Transformer
from samplers.autoregressive import Decoding
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=ImageTokens(images=Digits()),
    model=LanguageModel(
        backbone=Transformer(width=128, depth=4, heads=4, positions="learned", context=64),
        from_start=True,
        num_classes=10,
    ),
    loss=NextToken(),
    sampler=Decoding(),
    metrics=(TokenLikelihood(examples=10_000), TwoSampleAccuracy()),
    optimizer=Optimizer(learning_rate=2e-3, warmup=50, decay="cosine", weight_decay=0.1),
    steps=1000,
    batch_size=64,
    ema=0.99,
    sample_every=500,
)

tiny = replace(
    experiment,
    model=LanguageModel(backbone=Transformer(width=8, depth=1, heads=2), from_start=True, num_classes=10),
    metrics=(TokenLikelihood(examples=16),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
