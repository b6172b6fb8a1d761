"""An embedder: a network whose outputs are compared by their angle, and the class directions that train it.

    (1)  h = net(x) ∈ R^D: raw, for its length matters to some losses; what is compared are directions h/‖h‖
    (2)  head W ∈ R^{C×D}: a row a class, or K rows a class (sub-centres, ArcFace ECCV 2020). No class bias: two of the
         same direction could not be told apart by angle (1704.08063 §3.1)

The head is one global array. With `class_axis` its rows are split over that axis of the mesh, which may be one of those
that the batch is split over, and padded to a multiple of 128, so that a checkpoint's shapes do not depend on the mesh
it was made on.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from models.model import Batch, Model, Variables
from models.sharding import Split

PAD = 128  # rows of a split head are a multiple of this: any mesh of 2, 4, … 128 devices divides them


class EmbeddingNet(nn.Module, ABC):
    """Base of the networks an `Embedder` can hold. Batch statistics, if any, are in the collection `batch_stats`.

    `dtype` and `remat` are of the compute; None means "as the experiment says".
    """

    features: int = 512  # D, the length of an embedding
    dtype: str | None = None  # compute dtype (float32, bfloat16); parameters stay float32
    remat: str | None = None  # gradient checkpointing of the repeated blocks, models/remat.py

    @abstractmethod
    def __call__(self, x: Float[Array, "b *s"], train: bool = False) -> Float[Array, "b d"]:
        """h of (1), float32. Training takes a key `dropout`, and `batch_stats` mutable."""


def check_images(x: Float[Array, "b *s"], who: str) -> None:
    """Raises a ValueError unless x is of images [B, H, W, C]."""
    if x.ndim != 4:
        raise ValueError(f"{who} takes images [B, H, W, C], not arrays with {x.ndim - 1} axes an example")


def unit(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Directions along the last axis, in float32 or better. That of 0 is 0, and so is its derivative."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    there = square > 1e-24
    return jnp.where(there, x * jax.lax.rsqrt(jnp.where(there, square, 1.0)), 0.0)


@dataclass(frozen=True, kw_only=True)
class Embedder(Model):
    """Eq. (1) and (2)."""

    net: EmbeddingNet
    classes: int | None = None  # C; None: as many as the data has
    centres: int = 1  # K, rows of a class
    # Axis of the mesh (model, data or fsdp) that the head's rows are split over; empty: a copy on each device.
    class_axis: str = ""
    # W is no parameter: the loss itself updates it (losses/identification.py, `update`). It is then not averaged, and
    # beside the averaged parameters of the network stands W as it is.
    head_in_state: bool = False
    logit_bias: bool = False  # one learned number added to every logit (SphereFace2's b)
    class_means: bool = False  # a table of class centres in the state (losses/metric_learning.py, center loss)

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes={self.classes}: a softmax needs two classes or more")
        if self.centres < 1:
            raise ValueError(f"centres={self.centres} must be at least 1")

    @property
    def rows(self) -> int:
        """Classes that the head has rows for: C, padded where they are split."""
        classes = self._classes()
        return -(-classes // PAD) * PAD if self.class_axis else classes

    @property
    def split(self) -> Split:
        """The head and what is kept beside it, besides the network's widths."""
        axes = (self.class_axis or None, *[None] * (1 if self.centres == 1 else 2))
        return {"head": axes, "momentum": axes, **super().split}

    def _classes(self) -> int:
        if self.classes is None:
            raise ValueError("the embedder's classes are not set, and the data has none")
        return self.classes

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        net_key, head_key = jax.random.split(key)
        found = dict(self.net.init(net_key, batch["x"]))
        params: dict[str, Any] = {"net": found.pop("params")}
        state: dict[str, Any] = {"net": found}
        size = self.net.features
        shape = (self.rows, size) if self.centres == 1 else (self.rows, self.centres, size)
        # Rows of length about 1, so that a step turns those that are normalised as far as those that are not.
        head = jax.random.normal(head_key, shape) / np.sqrt(size)
        if self.head_in_state:
            state |= {"head": head, "momentum": jnp.zeros_like(head)}
        else:
            params["head"] = head
        if self.logit_bias:
            params["logit_bias"] = jnp.zeros(())
        if self.class_means:
            state["class_means"] = jnp.zeros((self._classes(), size))
        return {"params": params, "state": state}

    def embed(self, variables: Variables, x: Float[Array, "b *s"]) -> Float[Array, "b d"]:
        """h, raw; without dropout, with the running statistics."""
        return self._apply(variables, x, train=False)

    def train_embed(
        self, variables: Variables, x: Float[Array, "b *s"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "b d"], Variables]:
        """h as training sees it, and the new state."""
        h, stats = self._apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return h, {**variables["state"], "net": {**variables["state"]["net"], **stats}}

    def _apply(self, variables: Variables, x: Float[Array, "b *s"], **how: Any) -> Any:
        return self.net.apply({"params": variables["params"]["net"], **variables["state"]["net"]}, x, **how)

    def head(self, variables: Variables) -> Float[Array, "..."]:
        """W: [C, D], or [C, K, D]; rows past C, where it is padded, are no classes."""
        return variables["state" if self.head_in_state else "params"]["head"]

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        if "label" not in batch:
            raise ValueError("an embedder is trained on labels, and this data has none")
        label, classes = np.asarray(batch["label"]), self._classes()
        if len(label) and (label.min() < 0 or label.max() >= classes):
            wrong = label[(label < 0) | (label >= classes)][0]
            raise ValueError(f"label {wrong} is not among the {classes} classes 0 … {classes - 1} of the head")
