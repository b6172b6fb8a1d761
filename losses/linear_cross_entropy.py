"""Cross-entropy over very many classes whose B×C logits are never held.

    (1)  z_ij = f(r_i·cosθ_ij) of the other classes;  t_i of the example's own, by its margin
    (2)  softmax   L_i = log(e^{t_i} + Σ_{j≠y} e^{z_ij}) − t_i                    losses/margin_softmax.py, (0) to (8)
         binary    L_i = λ/s·log(1 + e^{−t_i−b}) + (1−λ)/s·Σ_{j≠y} log(1 + e^{z_ij+b})                          (9)
    (3)  with label smoothing ε: (1 − ε)·L_i + ε·(L_i + t_i − mean_j z_ij), t_i being the target's z     1512.00567 §7

A margin changes the target's logit alone, and that takes one row of W an example. So what goes over all classes is the
sum over the *others* (losses/class_sums.py), which knows nothing of margins; what is here knows nothing of chunks,
devices and samples. All of it in float32 or better, whatever x and W are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from losses.class_chunks import ClassSums, Head, PerExample, Settings, product
from losses.class_sums import class_sums
from losses.margin_softmax import BinaryMargin, Margin, NormFace, Step
from models.embedder import unit


def logit_of_target(
    margin: Margin, x: Float[Array, "b d"], rows: Head, label: Int[Array, " b"], step: Step
) -> tuple[PerExample, PerExample]:
    """t of (1), and the same without margin."""
    if rows.ndim == 3:  # the sub-centre that is nearest, which is then the class's only one
        nearest = jnp.argmax(product("bd,bkd->bk", x, unit(rows) if margin.UNIT_WEIGHTS else rows), axis=1)
        rows = jnp.take_along_axis(rows, nearest[:, None, None], axis=1)[:, 0]
    directions, norm = unit(rows), _length(x)
    cos = jnp.sum(unit(x) * directions, axis=1)
    if margin.UNIT_FEATURES:
        plain = margin.scale * cos
    else:  # the product itself, whose gradient is W's row also where x is 0 and has no angle
        plain = jnp.sum(x * (directions if margin.UNIT_WEIGHTS else rows), axis=1)
    norm = norm if margin.UNIT_WEIGHTS else norm * _length(rows)
    return plain + margin.shift(jnp.clip(cos, -1.0, 1.0), norm, label, step), plain


def _length(x: Float[Array, "b d"]) -> PerExample:
    square = jnp.sum(x * x, axis=1)
    return jnp.where(square > 0.0, jnp.sqrt(jnp.where(square > 0.0, square, 1.0)), 0.0)


def scaled(margin: Margin, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """u, of which an inner product with a class's direction is its logit."""
    return margin.scale * unit(x) if margin.UNIT_FEATURES else x


def value_of(
    settings: Settings, x: Float[Array, "b d"], found: ClassSums, bias: PerExample, label: Int[Array, " b"], step: Step
) -> tuple[PerExample, PerExample]:
    """(2) and (3); and 1 where the class of an example, margins left out, is ahead of all that were looked at."""
    margin = settings.margin
    t, plain = logit_of_target(margin, x, found.rows, label, step)
    if isinstance(margin, BinaryMargin):
        positive = margin.balance * jax.nn.softplus(-t - bias)
        value = (positive + (1.0 - margin.balance) * found.total) / margin.scale
        plain = margin.other(plain[:, None])[:, 0] + bias
    else:
        value = jax.nn.softplus(found.total - t)
    if settings.smoothing:
        value = value + settings.smoothing * (t - (found.logit_sum + t) / (found.negatives + 1.0))
    return value + margin.extra(_length(x)), (plain > found.max_logit).astype(jnp.float32)


def first_bias(margin: Margin, classes: int) -> float:
    """What every logit begins with: b₀ of a binary loss."""
    return margin.first_bias(classes) if isinstance(margin, BinaryMargin) else 0.0


class ClassLoss(NamedTuple):
    """What `linear_cross_entropy` returns."""

    value: PerExample
    correct: PerExample  # 1 where the class is told rightly, margins left out (among the classes looked at)
    overflow: Int[Array, ""]  # of the batch's classes, those past the slots of their shard, which were no rivals


def linear_cross_entropy(
    x: Float[Array, "b _"],
    w: Head,
    label: Int[Array, " b"],
    *,
    margin: Margin | None = None,
    step: Step = 0,
    chunk: int = 0,
    class_axis: str | None = None,
    sample: float = 1.0,
    key: Key[Array, ""] | None = None,
    label_smoothing: float = 0.0,
    bias: Float[Array, ""] | float = 0.0,
    classes: int | None = None,
) -> ClassLoss:
    """−log p of each example's class, of C classes given by the rows of W.

    Args:
      x: embeddings, as they come.
      w: [C, D], or [C, K, D] for K sub-centres.
      margin: NormFace without one.
      step: steps already taken, for margins that grow.
      chunk: classes whose logits are held at once; 0: as many as make 2²¹ logits.
      class_axis: an axis of the ambient mesh (`jax.set_mesh`) that W's rows are split over; examples are split over its
        axes "data" and "fsdp" (losses/class_mesh.py).
      sample: the part of each shard's classes that is looked at; those of the batch are among them.
      key: decides which part.
      label_smoothing: ε of (3).
      bias: added to every logit of a binary loss, beside its own first one.
      classes: of a padded W, how many of the rows are classes.

    Raises:
      ValueError: shapes, labels (where they are known) or settings that do not fit.
    """
    margin = margin or NormFace()
    settings = Settings(margin, w.shape[0] if classes is None else classes, chunk, sample, label_smoothing, class_axis)
    x, biases = prepared(settings, x, w, label, key, bias)
    found = class_sums(settings, scaled(margin, x), w, biases, label, key)
    value, correct = value_of(settings, x, found, biases, label, step)
    return ClassLoss(value, correct, found.overflow)


def prepared(
    settings: Settings,
    x: Float[Array, "b _"],
    w: Head,
    label: Int[Array, " b"],
    key: Key[Array, ""] | None,
    bias: Float[Array, ""] | float,
) -> tuple[Float[Array, "b _"], PerExample]:
    """x in float32 or better, and what is added to each example's logits.

    Raises:
      ValueError: shapes, labels (where they are known) or settings that do not fit.
    """
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(f"embeddings have {x.shape[-1]} features, but the rows of the head {w.shape[-1]}")
    if not 2 <= settings.classes <= w.shape[0]:
        raise ValueError(f"classes={settings.classes} must be at least 2 and at most the head's rows, {w.shape[0]}")
    if settings.sample < 1.0 and key is None:
        raise ValueError(f"sample={settings.sample} takes a key, which decides the part of the classes")
    if not isinstance(label, Tracer):
        check_labels(np.asarray(label), settings.classes)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x, jnp.broadcast_to(jnp.asarray(bias + first_bias(settings.margin, settings.classes), x.dtype), label.shape)


def check_labels(label: Int[np.ndarray, " b"], classes: int) -> None:
    """Raises a ValueError where one of them is none of the classes."""
    wrong = label[(label < 0) | (label >= classes)]
    if len(wrong):
        raise ValueError(f"label {wrong[0]} is not among the {classes} classes 0 … {classes - 1}")
