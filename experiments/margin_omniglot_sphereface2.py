"""SphereFace2 on Omniglot (2108.01513): a binary classifier for each character."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import SphereFace2

experiment = replace(
    softmax.experiment,
    loss=Identification(margin=SphereFace2(scale=16.0, m=0.2)),
    model=replace(softmax.experiment.model, logit_bias=True),
)

tiny = replace(softmax.tiny, loss=experiment.loss, model=replace(softmax.tiny.model, logit_bias=True))
