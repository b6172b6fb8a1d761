"""ArcFace's combined margin on Omniglot (1801.07698 eq. 4)."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import CombinedMargin

experiment = replace(
    softmax.experiment, loss=Identification(margin=CombinedMargin(scale=16.0, m1=1.0, m2=0.15, m3=0.1))
)

tiny = replace(softmax.tiny, loss=experiment.loss)
