"""Digits as pixels of 17 levels each, many drawn at once: pixel_transformer's data. An upper bound of bits/dim.

Of the class's token and the 64 pixels. `--loss.weighting maskgit` is MaskGIT's, which masks more.
"""

from dataclasses import replace

from data.digits import Digits
from data.image_tokens import ImageTokens
from losses.masked import MaskedTokens
from metrics.masked_likelihood import MaskedLikelihood
from metrics.neighbours import TwoSampleAccuracy
from models.masked import MaskedModel
from models.transformer import Transformer
from samplers.masked import MaskedDecoding
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=ImageTokens(images=Digits()),
    model=MaskedModel(
        backbone=Transformer(width=128, depth=4, heads=4, positions="learned", context=65, bidirectional=True),
        num_classes=10,
    ),
    loss=MaskedTokens(weighting="likelihood"),
    sampler=MaskedDecoding(steps=12),
    metrics=(MaskedLikelihood(examples=10_000), TwoSampleAccuracy()),
    optimizer=Optimizer(learning_rate=2e-3, warmup=50, decay="cosine", weight_decay=0.1),
    steps=1000,
    batch_size=64,
    ema=0.99,
    sample_every=500,
)

tiny = replace(
    experiment,
    model=MaskedModel(backbone=Transformer(width=8, depth=1, heads=2, bidirectional=True), num_classes=10),
    metrics=(MaskedLikelihood(examples=16, draws=2),),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
