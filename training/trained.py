"""A run, read to be drawn from and measured: by sample.py's means, in a line of Python."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import Dataset
from metrics.metric import Evaluation
from models.model import Model, Variables
from samplers.sampler import Sampler
from training.draw import Drawer, Drawn
from training.experiment import Experiment
from training.inputs import default_condition, example_batch
from training.measure import evaluation_of
from training.mesh import Mesh
from training.run import Run
from training.step import named_key


@dataclass(frozen=True)
class Trained:
    """The averaged parameters of a run, finished or not, ready to draw from."""

    experiment: Experiment
    model: Model
    variables: Variables
    step: int

    def evaluation(self, data: Dataset | None = None) -> Evaluation:
        """What a metric that looks at no samples is given, of the run's own data or of another set."""

        def nothing(n: int) -> np.ndarray:
            raise TypeError("this evaluation has no samples")

        return evaluation_of(self.model, self.variables, data or self.experiment.data, nothing)

    def draw(
        self, sampler: Sampler, n: int, condition: Any = None, trajectory: bool = False, variables: Any = None
    ) -> tuple[Drawn, float]:
        """n samples, and the seconds it took without compiling. By default all classes in turn."""
        drawer = Drawer(self.model, sampler, self.experiment.data.shape, Mesh().build(), batch_size=500)
        began = time.perf_counter()
        condition = default_condition(self.model, self.experiment.data, n) if condition is None else condition
        drawn = drawer(variables or self.variables, named_key(0, "sample"), n, condition, trajectory)
        return drawn, time.perf_counter() - began - drawer.compile_seconds


def trained(folder: Path) -> Trained:
    """What a run's newest checkpoint holds.

    Raises:
      UserError: there is no run in the folder, or no checkpoint yet.
    """
    run = Run(folder)
    experiment = run.experiment()
    model = experiment.resolved_model()
    variables, step = run.averaged(model, example_batch(experiment), Mesh().build())
    return Trained(experiment, model, variables, step)
