"""MNIST in a plane under AM-Softmax (1801.05599; CosFace).

Ten directions of a plane are 36 degrees apart at best, so a margin of more than 1 − cos 36° = 0.19 cannot be met by all
classes (1801.09414 §3.4): with m = 0.35 three of them fall together.
"""

from dataclasses import replace

from experiments import margin_mnist2d_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import CosFace

experiment = replace(softmax.experiment, loss=Identification(margin=CosFace(scale=16.0, m=0.15)))

tiny = replace(softmax.tiny, loss=experiment.loss)
