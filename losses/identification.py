"""Whose is it: the softmax over all classes, with any margin, that an embedder is trained by.

DeepID2 (1406.4773) calls it the identification signal; the losses of losses/metric.py, that compare examples with one
another, are the verification signal (§3). The equations are those of losses/linear_cross_entropy.py.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from losses.class_chunks import Settings
from losses.fused_head import HeadSGD, carried, fused_step
from losses.linear_cross_entropy import linear_cross_entropy, prepared
from losses.loss import Loss, Objective
from losses.margin_softmax import AdaFace, ArcFace, BinaryMargin, Margin
from models.embedder import Embedder
from models.model import Batch, Model, Variables


@dataclass(frozen=True, kw_only=True)
class Identification(Loss):
    """−log p of each example's class, by its margin."""

    margin: Margin = field(default_factory=ArcFace)
    label_smoothing: float = 0.0
    chunk: int = 0  # classes whose logits are held at once; 0: as many as make 2²¹ logits
    sample: float = 1.0  # part of the classes that a step looks at, its own examples' among them (Partial FC)
    update: HeadSGD | None = None  # the head's own, for an Embedder(head_in_state=True)

    def check_parts(self, parts: int) -> None:
        if parts > 1 and self.update is not None:
            raise ValueError(f"accumulate={parts}: a head that the loss updates would take a step a part")
        if parts > 1 and isinstance(self.margin, AdaFace):
            raise ValueError(
                f"accumulate={parts}: AdaFace compares the norms of a batch, which cannot be read in parts"
            )

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        embedder = embedder_of(model, batch)
        net_key, own_key = jax.random.split(key)
        h, state = embedder.train_embed(variables, batch["x"], net_key)
        return self.of_embedding(embedder, {**variables, "state": state}, h, batch["label"], own_key, step)

    def of_embedding(
        self,
        model: Embedder,
        variables: Variables,
        h: Float[Array, "b d"],
        label: Int[Array, " b"],
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> Objective:
        """The same of embeddings that are at hand."""
        w, state = model.head(variables), variables["state"]
        if (self.update is not None) != model.head_in_state:
            raise ValueError(
                "the head is updated by the loss (loss.update) exactly if it is no parameter (model.head_in_state): "
                f"got update={self.update} and head_in_state={model.head_in_state}"
            )
        if model.logit_bias and not isinstance(self.margin, BinaryMargin):
            raise ValueError(
                "logit_bias adds the same to all logits, which a softmax does not see: SphereFace2 alone has it"
            )
        bias = variables["params"].get("logit_bias", 0.0)
        if self.update is None:
            value, correct, overflow = linear_cross_entropy(
                h,
                w,
                label,
                margin=self.margin,
                step=step,
                chunk=self.chunk,
                class_axis=model.class_axis or None,
                sample=self.sample,
                key=key,
                label_smoothing=self.label_smoothing,
                bias=bias,
                classes=model.classes,
            )
        else:
            settings = Settings(
                margin=self.margin,
                classes=w.shape[0] if model.classes is None else model.classes,
                chunk=self.chunk,
                sample=self.sample,
                smoothing=self.label_smoothing,
                axis=model.class_axis or None,
            )
            h, biases = prepared(settings, h, w, label, key, bias)
            fixed_h, fixed_b = jax.lax.stop_gradient((h, biases))
            found = fused_step(settings, self.update, fixed_h, w, state["momentum"], fixed_b, label, key, step)
            value = carried(found, h, biases)
            correct, overflow = found.correct, found.overflow
            state = {**state, "head": found.w, "momentum": found.momentum}
        metrics: dict[str, Any] = {"accuracy": correct, "norm": jnp.linalg.norm(jax.lax.stop_gradient(h), axis=1)}
        if self.sample < 1.0:
            metrics["overflow"] = overflow.astype(jnp.float32)
        return Objective(value, metrics, state)


def embedder_of(model: Model, batch: Batch) -> Embedder:
    """The model, if it is an Embedder and the batch has labels to train it by.

    Raises:
      TypeError, ValueError: it is not, or has none.
    """
    if not isinstance(model, Embedder):
        raise TypeError(f"this loss trains an Embedder, got {type(model).__name__}")
    if "label" not in batch:
        raise ValueError("an embedder is trained on labels, and this data has none")
    return model
