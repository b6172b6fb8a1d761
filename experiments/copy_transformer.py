"""A transformer that repeats what it was told; --data reversal, --data sorting and --data parity for other tasks."""

from dataclasses import replace

from data.tasks import Copying
from losses.sequence import NextToken
from metrics.exact_match import ExactMatch
from models.language_model import LanguageModel
from models.transformer import Transformer
from samplers.autoregressive import Decoding
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Copying(symbols=10, length=20),
    model=LanguageModel(backbone=Transformer(width=64, depth=2, heads=4)),
    loss=NextToken(),
    sampler=Decoding(temperature=0.0),
    metrics=(ExactMatch(),),
    optimizer=Optimizer(learning_rate=3e-3, warmup=100, decay="cosine"),
    steps=2000,
    batch_size=64,
    ema=0.99,
    sample_count=16,
)

tiny = replace(
    experiment,
    data=Copying(symbols=3, length=4),
    model=LanguageModel(backbone=Transformer(width=8, depth=1, heads=2)),
    metrics=(ExactMatch(examples=16),),
    steps=20,
    batch_size=8,
    log_every=5,
    sample_every=20,
    sample_count=4,
)
