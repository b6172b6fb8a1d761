"""An LSTM that writes text character by character: any file, by default the sources of Python's library.

Trained by truncated backpropagation through time along 32 streams: each batch goes on where the last one ended, from
the state that it ended in.
"""

from dataclasses import replace

from data.text import Text
from losses.sequence import NextToken
from metrics.token_likelihood import TokenLikelihood
from models.language_model import LanguageModel
from models.rnn import LSTM
from samplers.autoregressive import Decoding
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Text(context=64, streams=32),
    model=LanguageModel(backbone=LSTM(width=256, depth=2), tied=False, carried=True),
    loss=NextToken(),
    sampler=Decoding(length=500, temperature=0.8),
    metrics=(TokenLikelihood(examples=10_000, join=16),),
    optimizer=Optimizer(learning_rate=3e-3, b2=0.99, warmup=50, decay="cosine"),
    steps=900,
    batch_size=32,
    ema=0.99,
)

tiny = replace(
    experiment,
    data=Text(context=16, streams=8),
    model=LanguageModel(backbone=LSTM(width=16, depth=2), tied=False, carried=True),
    sampler=Decoding(length=24),
    metrics=(TokenLikelihood(examples=32, batch_size=16),),
    steps=20,
    batch_size=8,
    log_every=5,
    sample_every=20,
    sample_count=2,
)
