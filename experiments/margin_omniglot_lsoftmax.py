"""L-Softmax on Omniglot (1612.02295): m = 2, annealed to a quarter of it at the run's end."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import LSoftmax

experiment = replace(softmax.experiment, loss=Identification(margin=LSoftmax(m=2, decay=0.3)))

tiny = replace(softmax.tiny, loss=experiment.loss)
