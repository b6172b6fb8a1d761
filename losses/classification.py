"""Cross-entropy of a classifier at random noise levels.

(1)  L = E_t,ε [ −log p(y | xₜ, t) ],  xₜ = α(t)·x₀ + σ(t)·ε                    2011.13456 app. I; 2105.05233 §4
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective
from losses.times import TimeDistribution
from losses.times import Uniform as UniformTimes
from models.classifier import NoisyClassifier
from models.model import Batch, Model, Variables


@dataclass(frozen=True, kw_only=True)
class NoisyClassification(Loss):
    """Eq. (1)."""

    times: TimeDistribution = field(default_factory=UniformTimes)

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, NoisyClassifier):
            raise TypeError(f"the noisy classification loss needs a NoisyClassifier, got {type(model).__name__}")
        if "label" not in batch:
            raise ValueError("a classifier is trained on labels, and this data has none")
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x0, label = batch["x"], batch["label"]
        t = self.times(time_key, x0.shape[0], model.path)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        xt = model.path.interpolate(x0, eps, t)
        log_probs = jax.nn.log_softmax(model.logits(variables, xt, t, dropout_key))
        chosen = jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]
        right = (jnp.argmax(log_probs, axis=1) == label).astype(jnp.float32)
        return Objective(-chosen, {"accuracy": right}, variables["state"])
