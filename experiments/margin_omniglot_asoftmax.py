"""A-Softmax on Omniglot (SphereFace, 1704.08063): m = 4, annealed as the paper has it: to a ninth at the run's end."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import ASoftmax

experiment = replace(softmax.experiment, loss=Identification(margin=ASoftmax(m=4)))

tiny = replace(softmax.tiny, loss=experiment.loss)
