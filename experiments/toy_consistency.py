"""Consistency training on a 2-D toy density: neighbours on a trajectory have one end (two moons; --data others).

Song et al. 2303.01469 and 2310.14189: no teacher; pseudo-Huber distance on a grid that doubles while training.
"""

from dataclasses import replace

from experiments.toy_meanflow import experiment as meanflow
from experiments.toy_meanflow import tiny as tiny_meanflow
from losses.consistency import ConsistencyTraining
from samplers.jumps import Jumps

experiment = replace(meanflow, loss=ConsistencyTraining(doubling=800), sampler=Jumps(steps=1, renoise=True))

tiny = replace(tiny_meanflow, loss=ConsistencyTraining(doubling=800), sampler=Jumps(steps=1, renoise=True))
