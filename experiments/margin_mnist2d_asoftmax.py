"""MNIST in a plane under A-Softmax (1704.08063), m = 4, annealed."""

from dataclasses import replace

from experiments import margin_mnist2d_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import ASoftmax

experiment = replace(softmax.experiment, loss=Identification(margin=ASoftmax(m=4, decay=0.5, least=1.0)))

tiny = replace(softmax.tiny, loss=experiment.loss)
