"""A GRU that writes text character by character: char_rnn with another cell."""

from dataclasses import replace

from experiments import char_rnn
from models.rnn import GRU

experiment = replace(
    char_rnn.experiment,
    model=replace(char_rnn.experiment.model, backbone=GRU(width=256, depth=2)),
    steps=1000,
)

tiny = replace(char_rnn.tiny, model=replace(char_rnn.tiny.model, backbone=GRU(width=16, depth=2)))
