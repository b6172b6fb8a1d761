"""Class-conditional MeanFlow on MNIST (TFDS): digits in one network call, without a teacher.

Geng et al. 2505.13447 with mnist_flow's network and budget; a step costs more, for its Jacobian-vector product.
"""

from dataclasses import replace

from data.images import TFDS
from losses.meanflow import MeanFlow
from metrics.class_accuracy import ClassAccuracy
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.dit import DiT
from models.jump import Jump
from paths.schedules import Rectified
from samplers.jumps import Jumps
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Jump(net=DiT(width=192, depth=4, heads=6, patch=4, num_classes=10), path=Rectified(), predicts="velocity"),
    loss=MeanFlow(),
    sampler=Jumps(steps=1),
    metrics=(TwoSampleAccuracy(), ClassAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
    steps=3000,
    batch_size=64,
    ema=0.998,
    remat="full",
    checkpoints=Checkpoints(every=500),
    sample_every=1000,
)

tiny = replace(
    experiment,
    model=Jump(net=DiT(width=16, depth=2, heads=2, patch=7, num_classes=10), path=Rectified(), predicts="velocity"),
    sampler=Jumps(steps=2),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=1e-3),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
