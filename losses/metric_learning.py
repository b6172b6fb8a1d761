"""Training by comparison: examples with one another, or with the centres of their classes.

    (1)  L = L_id + λ·L_metric(h)       the identification and the verification signal of one h        1406.4773 table 1
    (2)  L = L_id + λ·½‖h − c_y‖²                                                         Wen et al., ECCV 2016 eq. 2, 5
    (3)  c_j ← c_j − α·Σᵢ δ(yᵢ = j)(c_j − hᵢ)/(1 + n_j),  n_j = Σᵢ δ(yᵢ = j)                                 ibid. eq. 4

L_id is any softmax over classes (losses/identification.py), L_metric one of losses/metric.py. The centres of (2) are
those from before (3), and no gradient goes through them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.identification import Identification, embedder_of
from losses.loss import Loss, Objective
from losses.metric import MetricLoss, Triplet
from models.model import Batch, Model, Variables


def moved_centres(
    centres: Float[Array, "c d"], h: Float[Array, "b d"], label: Int[Array, " b"], rate: float
) -> Float[Array, "c d"]:
    """(3). The rows of the batch's classes alone are written, whatever their number is."""
    count = jnp.sum(label[:, None] == label[None, :], axis=1)
    step = rate * (centres[label] - h) / (1.0 + count)[:, None]
    return centres.at[label].add(-step.astype(centres.dtype))


@dataclass(frozen=True, kw_only=True)
class MetricLearning(Loss):
    """Eq. (1). The batch should hold several examples of a class: see data/grouped.py."""

    metric: MetricLoss = field(default_factory=Triplet)
    weight: float = 1.0  # λ
    identification: Identification | None = None

    def __post_init__(self) -> None:
        if self.weight < 0.0:
            raise ValueError(f"weight={self.weight} must be at least 0")

    def check_parts(self, parts: int) -> None:
        if parts > 1:
            raise ValueError(f"accumulate={parts}: examples are compared within a batch, which cannot be read in parts")

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        embedder = embedder_of(model, batch)
        net_key, own_key = jax.random.split(key)
        h, state = embedder.train_embed(variables, batch["x"], net_key)
        value, active = self.metric.compare(h, batch["label"])
        metrics: Mapping[str, Array] = {"metric_loss": value, "active": active}
        value = self.weight * value
        if self.identification is not None:
            now = {**variables, "state": state}
            found = self.identification.of_embedding(embedder, now, h, batch["label"], own_key, step)
            value, state = found.value + value, found.state
            metrics = {**found.metrics, **metrics, "identification_loss": found.value}
        return Objective(value, metrics, state)


@dataclass(frozen=True, kw_only=True)
class CenterLoss(Loss):
    """Eq. (2) and (3), for an Embedder(class_means=True)."""

    identification: Identification = field(default_factory=Identification)
    weight: float = 0.003  # λ
    rate: float = 0.5  # α

    def __post_init__(self) -> None:
        if self.weight < 0.0 or not 0.0 < self.rate <= 1.0:
            raise ValueError(f"weight={self.weight} must be at least 0 and rate={self.rate} in (0, 1]")

    def check_parts(self, parts: int) -> None:
        if parts > 1:
            raise ValueError(f"accumulate={parts}: centres move once a batch, eq. (3), which cannot be read in parts")

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        embedder = embedder_of(model, batch)
        if not embedder.class_means:
            raise ValueError("the center loss keeps its centres in the embedder's state: set class_means=True")
        net_key, own_key = jax.random.split(key)
        h, state = embedder.train_embed(variables, batch["x"], net_key)
        label, centres = batch["label"], jax.lax.stop_gradient(state["class_means"])
        found = self.identification.of_embedding(embedder, {**variables, "state": state}, h, label, own_key, step)
        distance = 0.5 * jnp.sum((h - centres[label]) ** 2, axis=1)
        metrics = {**found.metrics, "identification_loss": found.value, "center_loss": distance}
        moved = moved_centres(centres, jax.lax.stop_gradient(h), label, self.rate)
        return Objective(found.value + self.weight * distance, metrics, {**found.state, "class_means": moved})
