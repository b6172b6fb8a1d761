"""MNIST in a plane under AM-Softmax (1801.05599; CosFace)."""

from dataclasses import replace

from experiments import margin_mnist2d_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import CosFace

experiment = replace(softmax.experiment, loss=Identification(margin=CosFace(scale=16.0, m=0.35)))

tiny = replace(softmax.tiny, loss=experiment.loss)
