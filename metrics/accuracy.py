"""How often a classifier of noisy data is right at given times."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from data.dataset import Dataset
from metrics.examples import over_examples
from metrics.metric import Evaluation, Metric, check_has_labels
from models.classifier import NoisyClassifier
from models.model import Variables
from samplers.sampler import normal_like


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Fraction of test examples whose class a classifier names, clean and at higher noise."""

    times: tuple[float, ...] = (0.0, 0.5)  # each is measured, in [0, 1]; 0 is the path's first, next to clean data
    examples: int = 10_000  # the first so many of the test split
    seed: int = 0  # decides the noise

    def __post_init__(self) -> None:
        if not all(0.0 <= t <= 1.0 for t in self.times):
            raise ValueError(f"times={self.times} are not all in [0, 1]")

    def check(self, data: Dataset) -> None:
        check_has_labels("accuracy", data)

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = evaluation.model
        if not isinstance(model, NoisyClassifier):
            raise ValueError(f"accuracy is measured on a NoisyClassifier; this run's model is {type(model).__name__}")
        path = model.path
        times = [float(min(max(t, path.t_min), path.t_max)) for t in self.times]

        def right(variables: Variables, batch: dict[str, Array], keys: Key[Array, " b"]) -> list[Bool[Array, " b"]]:
            x, found = batch["x"], []
            for time in times:
                t = jnp.full(x.shape[:1], time)
                xt = path.interpolate(x, normal_like(keys, x), t)
                found.append(jnp.argmax(model.logits(variables, xt, t), axis=1) == batch["label"])
            return found

        arrays = evaluation.data.arrays("test", self.examples)
        found = over_examples(right, evaluation.variables, arrays, self.seed, 500)
        names = ["accuracy" if t == 0.0 else f"accuracy_at_{t:g}" for t in self.times]
        return {name: float(value.mean()) for name, value in zip(names, found, strict=True)}
