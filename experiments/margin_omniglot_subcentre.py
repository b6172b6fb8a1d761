"""Sub-centre ArcFace on Omniglot (ECCV 2020): three rows of the head a class."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import ArcFace

experiment = replace(
    softmax.experiment,
    loss=Identification(margin=ArcFace(scale=16.0, m=0.3)),
    model=replace(softmax.experiment.model, centres=3),
)

tiny = replace(softmax.tiny, loss=experiment.loss, model=replace(softmax.tiny.model, centres=3))
