"""NormFace on Omniglot (1704.06369): a softmax over cosines, without margin."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import NormFace

experiment = replace(softmax.experiment, loss=Identification(margin=NormFace(scale=16.0)))

tiny = replace(softmax.tiny, loss=experiment.loss)
