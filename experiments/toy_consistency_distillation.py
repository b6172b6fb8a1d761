"""Consistency distillation of a flow on a 2-D toy density (two moons): needs the teacher's run, `--teacher RUN`.

Song et al. 2303.01469 eq. 6-7: neighbours lie on the teacher's own ODE, one Heun step apart.
"""

from dataclasses import replace

from data.toys import TwoMoons
from losses.consistency import ConsistencyDistillation
from metrics.neighbours import TwoSampleAccuracy
from models.denoiser import Denoiser
from models.jump import Jump
from models.mlp import MLP
from paths.schedules import Rectified
from samplers.jumps import Jumps
from training.experiment import Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TwoMoons(),
    model=Jump(
        net=MLP(width=128, depth=3),
        path=Rectified(),
        predicts="velocity",
        teacher=Denoiser(net=MLP(width=128, depth=3), path=Rectified(), predicts="velocity"),
    ),
    loss=ConsistencyDistillation(doubling=800),
    sampler=Jumps(steps=1, renoise=True),
    metrics=(TwoSampleAccuracy(samples=2000),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine"),
    steps=4000,
    batch_size=512,
    ema=0.995,
    log_every=200,
    sample_every=1000,
    sample_count=2000,
    teacher="runs/toy_flow",
)

tiny = replace(
    experiment,
    model=Jump(
        net=MLP(width=16, depth=2),
        path=Rectified(),
        predicts="velocity",
        teacher=Denoiser(net=MLP(width=16, depth=2), path=Rectified(), predicts="velocity"),
    ),
    metrics=(TwoSampleAccuracy(samples=100),),
    steps=20,
    batch_size=64,
    log_every=5,
    sample_every=10,
    sample_count=100,
    teacher="runs/toy_flow_tiny",
)
