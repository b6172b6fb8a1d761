"""Digits as sequences of pixels by an LSTM: pixel_transformer with another backbone."""

from dataclasses import replace

from experiments import pixel_transformer
from models.rnn import LSTM

experiment = replace(
    pixel_transformer.experiment,
    model=replace(pixel_transformer.experiment.model, backbone=LSTM(width=256)),
)

tiny = replace(pixel_transformer.tiny, model=replace(pixel_transformer.tiny.model, backbone=LSTM(width=8)))
