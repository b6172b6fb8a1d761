"""AdaFace on Omniglot (2204.00964)."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import AdaFace

experiment = replace(softmax.experiment, loss=Identification(margin=AdaFace(scale=16.0, m=0.2)))

tiny = replace(softmax.tiny, loss=experiment.loss)
