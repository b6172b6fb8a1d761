"""Reflow of toy_flow: a second rectified flow, on the first one's own pairs of noise and sample, drawn in one step.

Liu et al. 2209.03003, §2.1. Train toy_flow first, or name another run: `--data.teacher RUN`. With this run itself as
the teacher of the next (`--workdir runs/toy_reflow_3 --data.teacher runs/toy_reflow`) it gives the 3-rectified flow.
"""

from dataclasses import replace

from experiments.toy_flow import experiment as flow
from experiments.toy_flow import tiny as tiny_flow
from losses.flow_matching import FlowMatching
from paths.couplings import Pairs
from paths.grids import Uniform
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from training.reflow import Reflow

experiment = replace(
    flow,
    data=Reflow(teacher="runs/toy_flow"),
    loss=FlowMatching(coupling=Pairs()),
    sampler=Diffusion(solver=DDIM(), grid=Uniform(), steps=1),
)

tiny = replace(
    tiny_flow,
    data=Reflow(teacher="runs/toy_flow_tiny", pairs=256, shard=64),
    loss=experiment.loss,
    sampler=experiment.sampler,
)
