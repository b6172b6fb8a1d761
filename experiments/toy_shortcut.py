"""A shortcut model on a 2-D toy density: one jump of 2d is two jumps of d (two moons; --data others).

Frans et al. 2410.12557: one network for 1, 2, 4, … 64 steps, bootstrapped from flow matching while it trains.
"""

from dataclasses import replace

from data.toys import TwoMoons
from losses.shortcut import Shortcut
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
    loss=Shortcut(),
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
