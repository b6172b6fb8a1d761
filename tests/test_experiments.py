"""Every experiment of the straight-line branch takes steps with a real network, is measured and drawn."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from models.jump import Jump
from tests.conftest import needs
from training.cli import load_experiment
from training.loop import train

ALONE = ("toy_ot_flow", "toy_meanflow", "toy_shortcut", "toy_consistency", "digits_flow", "digits_classifier")
MNIST = tuple(
    pytest.param(name, marks=[needs("mnist"), pytest.mark.thorough]) for name in ("mnist_flow", "mnist_meanflow")
)


def short(name, **changes):
    """Its tiny form in two steps, on two of the eight devices."""
    experiment = load_experiment(name, tiny=True)
    mesh = replace(experiment.mesh, data=2)
    return replace(experiment, steps=2, mesh=mesh, sample_every=0, metrics=experiment.metrics[:1], **changes)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*ALONE, *MNIST])
def test_it_trains_with_checkpointing(name, tmp_path):
    """That it changes no gradient is tests/test_remat.py's."""
    assert math.isfinite(train(short(name, remat="full"), tmp_path)["loss"])


@pytest.mark.thorough
def test_a_flow_is_distilled_into_a_consistency_model(tmp_path):
    teacher = tmp_path / "flow"
    train(short("toy_flow"), teacher)
    summary = train(short("toy_consistency_distillation", teacher=str(teacher)), tmp_path / "student")
    assert math.isfinite(summary["loss"])


@pytest.mark.thorough
def test_jumps_start_at_zero_and_learn_of_both_times(key):
    """F = 0 at the start; after that it is told t and t − s."""
    model = load_experiment("toy_meanflow", tiny=True).model
    assert isinstance(model, Jump)
    x = jax.random.normal(key, (6, 2))
    variables = model.init(key, {"x": x})
    t = np.full(6, 0.8, np.float32)
    np.testing.assert_array_equal(model.raw(variables, x, jax.numpy.asarray(t)), 0.0)
