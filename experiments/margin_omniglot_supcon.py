"""Supervised contrastive learning on Omniglot (2004.11362)."""

from dataclasses import replace

from data.grouped import Grouped
from experiments import margin_omniglot_softmax as softmax
from losses.metric import SupervisedContrastive
from losses.metric_learning import MetricLearning

experiment = replace(
    softmax.experiment,
    loss=MetricLearning(metric=SupervisedContrastive()),
    data=Grouped(data=softmax.experiment.data, each=4),
)

tiny = replace(softmax.tiny, loss=experiment.loss, data=Grouped(data=softmax.tiny.data, each=4))
