"""A-Softmax on Omniglot (SphereFace, 1704.08063): m = 4, annealed to a sixth of it, as the paper's own."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import ASoftmax

experiment = replace(softmax.experiment, loss=Identification(margin=ASoftmax(m=4, decay=0.5)))

tiny = replace(softmax.tiny, loss=experiment.loss)
