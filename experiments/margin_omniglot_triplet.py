"""FaceNet's triplet loss on Omniglot (1503.03832), over all triplets that cost something (1703.07737), in fours."""

from dataclasses import replace

from data.grouped import Grouped
from experiments import margin_omniglot_softmax as softmax
from losses.metric import Triplet
from losses.metric_learning import MetricLearning

experiment = replace(
    softmax.experiment,
    loss=MetricLearning(metric=Triplet(mining="all", active=True)),
    data=Grouped(data=softmax.experiment.data, each=4),
)

tiny = replace(softmax.tiny, loss=experiment.loss, data=Grouped(data=softmax.tiny.data, each=4))
