"""Squared error of one number a sequence: L = (y − target)²."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective
from models.model import Batch, Model, Variables
from models.regressor import SequenceRegressor


@dataclass(frozen=True, kw_only=True)
class SquaredError(Loss):
    """As above; logs how many answers are near, as metrics/squared_error.py counts them."""

    near: float = 0.04  # of the adding problem, Hochreiter & Schmidhuber 1997 §5.4

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, SequenceRegressor):
            raise TypeError(f"the squared error is of a SequenceRegressor, got {type(model).__name__}")
        if "target" not in batch:
            raise ValueError("a regression needs a target, and this data has none")
        error = model.predict(variables, batch["x"], key) - batch["target"]
        near = (jnp.abs(error) < self.near).astype(jnp.float32)
        return Objective(jnp.square(error), {"near": near}, variables["state"])
