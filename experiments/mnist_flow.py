"""Class-conditional rectified flow on MNIST (TFDS) with a small DiT: 23 minutes on two CPU cores.

Liu et al. 2209.03003 and Lipman et al. 2210.02747 (straight lines, velocity), t logit-normal (2403.03206), a DiT of 49
tokens (2212.09748) with labels dropped at random for classifier-free guidance (2207.12598).
"""

from dataclasses import replace

from data.images import TFDS
from losses.flow_matching import FlowMatching
from losses.times import LogitNormal
from metrics.class_accuracy import ClassAccuracy
from metrics.neighbours import NearestTrainDistance, TwoSampleAccuracy
from models.denoiser import Denoiser
from models.dit import DiT
from paths.grids import Uniform
from paths.schedules import Rectified
from samplers.diffusion import Diffusion
from samplers.heun import Heun
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

net = DiT(width=192, depth=4, heads=6, patch=4, num_classes=10)
tiny_net = DiT(width=16, depth=2, heads=2, patch=7, num_classes=10)

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Denoiser(net=net, path=Rectified(), predicts="velocity"),
    loss=FlowMatching(times=LogitNormal(draw="low_discrepancy"), label_dropout=0.1),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=20),
    metrics=(TwoSampleAccuracy(), ClassAccuracy(), NearestTrainDistance()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
    steps=3000,
    batch_size=64,
    ema=0.998,
    remat="full",  # as in digits_flow: on a CPU recomputing is quicker than keeping
    checkpoints=Checkpoints(every=500),
    sample_every=1000,
)

tiny = replace(
    experiment,
    model=Denoiser(net=tiny_net, path=Rectified(), predicts="velocity"),
    sampler=Diffusion(solver=Heun(), grid=Uniform(), steps=3),
    metrics=(TwoSampleAccuracy(samples=16),),
    optimizer=Optimizer(learning_rate=1e-3),
    steps=4,
    batch_size=8,
    log_every=2,
    sample_every=4,
    sample_count=10,
)
