"""Center loss beside the softmax on Omniglot (Wen et al., ECCV 2016)."""

from dataclasses import replace

from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import Softmax
from losses.metric_learning import CenterLoss

experiment = replace(
    softmax.experiment,
    loss=CenterLoss(identification=Identification(margin=Softmax())),
    model=replace(softmax.experiment.model, class_means=True),
)

tiny = replace(softmax.tiny, loss=experiment.loss, model=replace(softmax.tiny.model, class_means=True))
