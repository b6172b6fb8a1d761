"""The adding problem: the sum of two marked numbers among 200, by an LSTM.

`--model.backbone rnn --model.backbone.width 64`, or gru, for the others.

Hochreiter & Schmidhuber 1997 §5.4: what a network has to keep for a hundred steps decides. Whoever always answers 1 has
a mean squared error of 1/6.
"""

from dataclasses import replace

from data.tasks import Adding
from losses.regression import SquaredError
from metrics.squared_error import MeanSquaredError
from models.regressor import SequenceRegressor
from models.rnn import LSTM
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Adding(length=200),
    model=SequenceRegressor(backbone=LSTM(width=64)),
    loss=SquaredError(),
    metrics=(MeanSquaredError(),),
    optimizer=Optimizer(learning_rate=2e-3, warmup=50, decay="cosine"),
    steps=6000,
    batch_size=64,
    ema=0.99,
)

tiny = replace(
    experiment,
    data=Adding(length=10),
    model=SequenceRegressor(backbone=LSTM(width=8)),
    metrics=(MeanSquaredError(examples=16),),
    steps=20,
    batch_size=8,
    log_every=5,
)
