"""Minibatch optimal transport on a 2-D toy density: straighter paths than independent pairs (two moons; --data others).

Tong et al. 2302.00482: flow matching whose noise is assigned to data at least cost, batch by batch. toy_flow otherwise.
"""

from dataclasses import replace

from experiments.toy_flow import experiment as flow
from experiments.toy_flow import tiny as tiny_flow
from losses.flow_matching import FlowMatching
from paths.couplings import MinibatchOT

experiment = replace(flow, loss=FlowMatching(coupling=MinibatchOT()))

tiny = replace(tiny_flow, loss=FlowMatching(coupling=MinibatchOT()))
