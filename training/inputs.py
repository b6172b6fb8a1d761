"""What a model is initialised with and samples are drawn from: an experiment's batch, prompts, classes, images."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Dataset, MalformedDataError
from models.codec import Codec
from models.model import Model, Variables
from training.errors import UserError, first_line
from training.experiment import Experiment
from training.step import named_key


def shapes_of(model: Model, batch: dict[str, Any]) -> Variables:
    """Shapes of a model's variables. Nothing is allocated for them.

    Raises:
      UserError: the settings make none, or more than this machine could hold.
    """
    try:
        shapes = jax.eval_shape(model.init, named_key(0, "init"), batch)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"the model cannot be built: {first_line(error)}") from error
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()
    if size > memory:
        raise UserError(f"the model's variables take {size >> 30} GiB, and this machine has {memory >> 30}")
    return shapes


def example_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """A run's batch in shape, of zeros: all that `init` and `eval_shape` look at. Reads no records.

    Raises:
      UserError: there can be no such array.
    """
    try:
        return experiment.data.zeros(experiment.batch_size)
    except MalformedDataError:  # of the records, and says all
        raise
    except (ValueError, OverflowError) as error:
        raise UserError(f"a batch of {experiment.batch_size} examples cannot be made: {error}") from error


def default_condition(model: Model, data: Dataset, n: int, first: int = 0) -> dict[str, Any] | None:
    """What samples `first` … `first` + n − 1 are drawn from: what the data has them begin with, and classes in turn.

    A first stage is given images of the test split, which it reconstructs. None where there is nothing of any.
    """
    given = data.condition(n, first) | given_images(model, data, n, first)
    return (jax.tree.map(jnp.asarray, given) | classes_in_turn(model, n, first)) or None


def given_images(model: Model, data: Dataset, n: int, first: int = 0) -> dict[str, Any]:
    """What a first stage reconstructs: the test split's images, again from its first behind its last."""
    if not isinstance(model, Codec):
        return {}
    source = data.source("test")
    numbers = np.arange(first, first + n)
    return {"image": source.read(numbers % len(source), -1, numbers)["x"]}


def classes_in_turn(model: Model, n: int, first: int = 0) -> dict[str, Any]:
    """Labels of samples `first` … `first` + n − 1 of a class-conditional model; nothing for another."""
    classes = getattr(model, "num_classes", 0)
    return {"label": (first + jnp.arange(n, dtype=jnp.int32)) % classes} if classes else {}


def usable(model: Model, variables: Variables) -> None:
    """Raises a UserError where a run's variables can be neither drawn from nor measured."""
    try:
        model.check(variables)
    except ValueError as error:
        raise UserError(str(error)) from error
