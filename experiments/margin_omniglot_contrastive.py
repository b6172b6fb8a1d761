"""DeepID2's joint signal on Omniglot (1406.4773): the softmax and the contrastive loss."""

from dataclasses import replace

from data.grouped import Grouped
from experiments import margin_omniglot_softmax as softmax
from losses.identification import Identification
from losses.margin_softmax import Softmax
from losses.metric import Contrastive
from losses.metric_learning import MetricLearning

experiment = replace(
    softmax.experiment,
    loss=MetricLearning(metric=Contrastive(), identification=Identification(margin=Softmax())),
    data=Grouped(data=softmax.experiment.data, each=4),
)

tiny = replace(softmax.tiny, loss=experiment.loss, data=Grouped(data=softmax.tiny.data, each=4))
