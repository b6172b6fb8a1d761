"""What is drawn and measured of a run: pictures while it trains, the experiment's metrics behind its last step."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from data.dataset import Dataset
from metrics.metric import Evaluation
from models.model import Model, Variables
from training.distributed import writes
from training.experiment import without_remat
from training.log import Log
from training.mesh import replicated
from training.picture import picture, save_png, texts, write_texts
from training.plan import Plan
from training.state import TrainState


def draw_picture(plan: Plan, state: TrainState, path: Path, log: Log, step: int) -> None:
    """A picture of samples, or what they read, where they are text. All processes draw, one writes."""
    data, x = plan.experiment.data, plan.samples(state, plan.experiment.sample_count)
    if not writes():
        return
    text = texts(data, x)
    if text is not None:
        write_texts(text, path.with_suffix(".txt"))
        log.text(step, text)
        return
    try:
        pixels = picture(data.shown(x))
    except ValueError as error:
        log.say(f"no picture of step {step}: {error}")
        return
    save_png(pixels, path)
    log.picture(step, pixels)


def evaluation_of(
    model: Model, variables: Variables, data: Dataset, samples: Callable[[int], np.ndarray]
) -> Evaluation:
    """What metrics look at. `samples(n)` draws the first n samples; what has been drawn is not drawn again."""
    drawn = np.zeros((0,))

    def draw(n: int) -> np.ndarray:
        nonlocal drawn
        if len(drawn) < n:
            drawn = samples(n)
        return drawn[:n]

    # A metric may differentiate forwards, for which not every policy has a rule; and none of them is needed.
    return Evaluation(without_remat(model), variables, data, draw)


def measure(plan: Plan, state: TrainState) -> dict[str, float]:
    """The experiment's metrics on the averaged parameters."""
    variables = {"params": state.average, "state": state.model}
    if jax.process_count() > 1:  # whole on every device: what a metric computes is then every process's
        variables = jax.jit(lambda v: v, out_shardings=replicated(plan.mesh))(variables)
    evaluation = evaluation_of(plan.model, variables, plan.experiment.data, lambda n: plan.samples(state, n))
    measured: dict[str, float] = {}
    for metric in plan.experiment.metrics:
        try:
            measured |= metric(evaluation)
        except Exception as error:  # the run is trained: one number that cannot be had does not undo it
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            print(f"warning: {metric} could not be measured: {kind}{error}", flush=True)
    return measured
