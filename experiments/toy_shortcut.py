"""A shortcut model on a 2-D toy density: one jump of 2d is two jumps of d (two moons; --data others).

Frans et al. 2410.12557: one network for 1, 2, 4, … 64 steps, bootstrapped from flow matching while it trains.
"""

from dataclasses import replace

from experiments.toy_meanflow import experiment as meanflow
from experiments.toy_meanflow import tiny as tiny_meanflow
from losses.shortcut import Shortcut

experiment = replace(meanflow, loss=Shortcut())

tiny = replace(tiny_meanflow, loss=Shortcut())
