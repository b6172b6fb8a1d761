"""ArcFace on Omniglot (1801.07698)."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import ArcFace

experiment = replace(softmax.experiment, loss=Identification(margin=ArcFace(scale=16.0, m=0.3)))

tiny = replace(softmax.tiny, loss=experiment.loss)
