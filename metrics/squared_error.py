"""Held-out squared error of a regressor, and how often it is near."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from metrics.examples import OverExamples, mean_and_error, named
from metrics.metric import Evaluation
from models.regressor import SequenceRegressor


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(OverExamples):
    """Mean of (y − target)², and the fraction with |y − target| below `near`."""

    near: float = 0.04  # of the adding problem, Hochreiter & Schmidhuber 1997 §5.4

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = evaluation.model
        if not isinstance(model, SequenceRegressor):
            raise ValueError(f"squared error is of a SequenceRegressor; this run's model is {type(model).__name__}")

        def error(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            return jnp.abs(model.predict(variables, batch["x"]) - batch["target"])

        found = self.over(error, evaluation, evaluation.data.arrays(self.split, self.examples))
        numbers = mean_and_error("squared_error", np.square(found)) | {"near": float(np.mean(found < self.near))}
        return named(numbers, self.split)
