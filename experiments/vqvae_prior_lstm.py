"""An LSTM over the codes of vqvae_mnist, told the class: vqvae_prior_transformer with another backbone."""

from dataclasses import replace

from experiments import vqvae_prior_transformer as transformer
from models.rnn import LSTM

experiment = replace(transformer.experiment, model=replace(transformer.experiment.model, backbone=LSTM(width=256)))

tiny = replace(transformer.tiny, model=replace(transformer.tiny.model, backbone=LSTM(width=8)))
