"""MagFace on Omniglot (2103.06627), its norms and margins made to the size of the problem."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import MagFace

experiment = replace(
    softmax.experiment,
    loss=Identification(margin=MagFace(scale=16.0, low=2.0, high=20.0, m_low=0.2, m_high=0.4, weight=1.0)),
)

tiny = replace(softmax.tiny, loss=experiment.loss)
