"""MNIST in a plane under ArcFace (1801.07698)."""

from dataclasses import replace

from experiments import margin_mnist2d_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import ArcFace

experiment = replace(softmax.experiment, loss=Identification(margin=ArcFace(scale=16.0, m=0.35, warmup=500)))

tiny = replace(softmax.tiny, loss=experiment.loss)
