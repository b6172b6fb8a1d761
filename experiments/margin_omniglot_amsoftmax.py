"""AM-Softmax (CosFace) on Omniglot (1801.05599, 1801.09414)."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import CosFace

experiment = replace(softmax.experiment, loss=Identification(margin=CosFace(scale=16.0, m=0.2)))

tiny = replace(softmax.tiny, loss=experiment.loss)
