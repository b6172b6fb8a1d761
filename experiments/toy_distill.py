"""Distillation of toy_reflow to one step: its pairs of noise and sample, all regressed at t = 1.

Liu et al. 2209.03003, §2.1: a straightened flow's one step is nearly right already, and is all that is trained here,
from fresh parameters. `--initial runs/toy_reflow` would start from the teacher's.
"""

from dataclasses import replace

from experiments.toy_reflow import experiment as reflow
from experiments.toy_reflow import tiny as tiny_reflow
from losses.flow_matching import FlowMatching
from losses.times import Point
from metrics.neighbours import TwoSampleAccuracy
from paths.couplings import Pairs
from training.reflow import Reflow

experiment = replace(
    reflow,
    data=Reflow(teacher="runs/toy_reflow"),
    loss=FlowMatching(coupling=Pairs(), times=Point(at=1.0)),
    metrics=(TwoSampleAccuracy(samples=2000),),  # no straightness: nothing is learnt of t below 1
)

tiny = replace(
    tiny_reflow,
    data=Reflow(teacher="runs/toy_reflow_tiny", pairs=256, shard=64),
    loss=experiment.loss,
)
