"""Class-conditional rectified flow on CIFAR-10 with DiT-S and patches of 2: for a GPU.

Peebles & Xie 2212.09748 has no CIFAR-10 row: its smallest network (33 M parameters), AdamW 1e-4 without decay, batch
256, EMA 0.9999 and label dropout 0.1, on straight lines (2209.03003) in place of DDPM's. It has not been trained here.
"""

from dataclasses import replace

from data.images import TFDS
from losses.flow_matching import FlowMatching
from losses.times import LogitNormal
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.dit import PRESETS, DiT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.diffusion import Diffusion
from samplers.guidance import ClassifierFree
from samplers.heun import Heun
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="cifar10", flip=True),
    model=Denoiser(net=DiT(**PRESETS["S"], patch=2, num_classes=10), path=Rectified(), predicts="velocity"),
    loss=FlowMatching(times=LogitNormal(draw="low_discrepancy"), label_dropout=0.1),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=50, transforms=(ClassifierFree(scale=1.5),)),
    metrics=(TwoSampleAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=1e-4),
    steps=400_000,
    batch_size=256,
    ema=0.9999,
    checkpoints=Checkpoints(every=5000, latest=2, keep_every=100_000),
    sample_every=20_000,
)

tiny = replace(
    experiment,
    model=Denoiser(net=DiT(width=16, depth=2, heads=2, patch=8, num_classes=10), path=Rectified(), predicts="velocity"),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=3),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=1e-3),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
