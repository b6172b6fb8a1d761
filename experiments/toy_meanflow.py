"""MeanFlow on a 2-D toy density: one network call from noise to data, without a teacher (two moons; --data others).

Geng et al. 2505.13447: F is the mean velocity between two times, regressed on what its own derivative says. The paper's
adaptive weight is for images, whose errors are all about equally large: in the plane it would favour the examples that
happen to be near, and F would not tend to their mean. Nor are its logit-normal times for the plane, where what is
decided is decided near t = 1. Measured beside reflow by `python reproduce.py reflow`.
"""

from dataclasses import replace

from data.toys import TwoMoons
from losses.meanflow import MeanFlow
from losses.times import Uniform
from metrics.neighbours import TwoSampleAccuracy
from models.jump import Jump
from models.mlp import MLP
from paths.schedules import Rectified
from samplers.jumps import Jumps
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TwoMoons(),
    model=Jump(net=MLP(width=128, depth=3), path=Rectified(), predicts="velocity"),
    loss=MeanFlow(power=0.0, times=Uniform()),
    sampler=Jumps(steps=1),
    metrics=(TwoSampleAccuracy(samples=2000),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine"),
    steps=4000,
    batch_size=512,
    ema=0.995,
    log_every=200,
    sample_every=1000,
    sample_count=2000,
)

tiny = replace(
    experiment,
    model=Jump(net=MLP(width=16, depth=2), path=Rectified(), predicts="velocity"),
    metrics=(TwoSampleAccuracy(samples=100),),
    steps=20,
    batch_size=64,
    log_every=5,
    sample_every=10,
    sample_count=100,
)
