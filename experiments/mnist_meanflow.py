"""Class-conditional MeanFlow on MNIST (TFDS): digits in one network call, without a teacher.

Geng et al. 2505.13447 with mnist_flow's network and budget; a step costs more, for its Jacobian-vector product.
"""

from dataclasses import replace

from experiments import mnist_flow
from losses.meanflow import MeanFlow
from models.jump import Jump
from models.model import Net
from paths.schedules import Rectified
from samplers.jumps import Jumps


def mean_flow(net: Net) -> Jump:
    return Jump(net=net, path=Rectified(), predicts="velocity")


experiment = replace(mnist_flow.experiment, model=mean_flow(mnist_flow.net), loss=MeanFlow(), sampler=Jumps(steps=1))

tiny = replace(mnist_flow.tiny, model=mean_flow(mnist_flow.tiny_net), loss=MeanFlow(), sampler=Jumps(steps=2))
