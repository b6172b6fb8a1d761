"""InfoNCE on Omniglot (1807.03748, 2002.05709): two drawings of a character are each other's positives."""

from dataclasses import replace

from data.grouped import Grouped
from experiments import margin_omniglot_softmax as softmax
from losses.metric import InfoNCE
from losses.metric_learning import MetricLearning

experiment = replace(
    softmax.experiment, loss=MetricLearning(metric=InfoNCE()), data=Grouped(data=softmax.experiment.data, each=2)
)

tiny = replace(softmax.tiny, loss=experiment.loss, data=Grouped(data=softmax.tiny.data, each=2))
