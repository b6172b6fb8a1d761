"""Consistency distillation of a flow on a 2-D toy density (two moons): needs the teacher's run, `--teacher RUN`.

Song et al. 2303.01469 eq. 6-7: neighbours lie on the teacher's own ODE, one Heun step apart.
"""

from dataclasses import replace

from experiments import toy_consistency
from losses.consistency import ConsistencyDistillation
from models.denoiser import Denoiser
from models.jump import Jump
from models.mlp import MLP
from paths.schedules import Rectified


def taught(net: MLP) -> Jump:
    teacher = Denoiser(net=net, path=Rectified(), predicts="velocity")
    return Jump(net=net, path=Rectified(), predicts="velocity", teacher=teacher)


experiment = replace(
    toy_consistency.experiment,
    model=taught(MLP(width=128, depth=3)),
    loss=ConsistencyDistillation(doubling=800),
    teacher="runs/toy_flow",
)

tiny = replace(
    toy_consistency.tiny,
    model=taught(MLP(width=16, depth=2)),
    loss=experiment.loss,
    teacher="runs/toy_flow_tiny",
)
