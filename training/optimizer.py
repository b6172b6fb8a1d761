"""The optimiser: clipping, Adam(W), Muon or SGD with momentum, warm-up and decay, as one optax chain.

(1)  1706.03762 eq. 3: rate d^(−½)·min(t^(−½), t·w^(−3/2)) at step t, which is a warm-up of w steps to (d·w)^(−½) and
     `inverse_sqrt` behind it
(2)  Muon (Jordan et al. 2024): the momentum of a matrix, orthogonalised, √max(1, out/in) of it; NAdam for all else
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam with decoupled weight decay, Muon for the kernels of layers, or SGD with momentum and an L2 penalty."""

    learning_rate: float = 2e-4  # at its peak
    warmup: int = 0  # steps of linear warm-up from 0
    decay: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "constant"  # after the warm-up
    final: float = 0.0  # where cosine and linear end on the last step, over the peak
    method: Literal["adam", "muon", "sgd"] = "adam"
    muon_rate: float = 0.02  # Muon's own learning rate at its peak, of kernels; `learning_rate` is that of the rest
    b1: float = 0.9  # of SGD, its momentum
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # of kernels alone: biases, scales and tables are left where the gradient takes them
    clip: float = 1.0  # largest global norm of the gradient; 0 does not clip

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup", "final", "muon_rate", "eps", "weight_decay", "clip"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be at least 0")
        for name in ("b1", "b2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} is not in [0, 1)")

    def schedule(self, steps: int, peak: float | None = None) -> optax.Schedule:
        """Learning rate of each step of a run of `steps`; its peak is `learning_rate` unless another is given."""
        peak = self.learning_rate if peak is None else peak
        left = max(steps - self.warmup, 1)
        after = {
            "constant": optax.constant_schedule(peak),
            "cosine": optax.cosine_decay_schedule(peak, left, self.final),
            "linear": optax.linear_schedule(peak, self.final * peak, left),
            # Counted from the warm-up's end, as `join_schedules` counts.
            "inverse_sqrt": lambda step: peak * (max(self.warmup, 1) / (step + 1 + max(self.warmup, 1))) ** 0.5,
        }[self.decay]
        if not self.warmup:
            return after
        # Step 0 already moves: a rate of exactly 0 would waste it.
        rise = optax.linear_schedule(peak / self.warmup, peak, max(self.warmup - 1, 1))
        return optax.join_schedules([rise, after], [self.warmup])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps`. Its `update` may be given `norm`, the gradient's, for clipping."""
        decay, mask = self.weight_decay, kernels if self.weight_decay else None
        rate = self.schedule(steps)
        if self.method == "adam":
            inner = optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=decay, mask=mask)
        elif self.method == "sgd":
            inner = optax.chain(optax.add_decayed_weights(decay, mask), optax.sgd(rate, self.b1))
        else:
            inner = optax.contrib.muon(
                self.schedule(steps, self.muon_rate),
                eps=self.eps,
                weight_decay=decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_learning_rate=rate,
                muon_weight_dimension_numbers=matrices,
            )
        return optax.chain(clipped(self.clip), inner) if self.clip else inner


def clipped(largest: float) -> optax.GradientTransformationExtraArgs:
    """Scales what has a greater global norm down to that of `largest`. Whoever knows the norm gives it to `update`."""

    def update(updates: Any, state: Any, params: Any = None, *, norm: Any = None, **_: Any) -> tuple[Any, Any]:
        norm = optax.global_norm(updates) if norm is None else norm
        scaled = lambda leaf: jnp.where(norm < largest, leaf, leaf / norm.astype(leaf.dtype) * largest)  # noqa: E731
        return jax.tree.map(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def kernels(params: Any) -> Any:
    """Which leaves are matrices of layers, as Linen names them; shapes do not tell, where layers are stacked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "").endswith("kernel"), params)


def matrices(params: Any) -> Any:
    """How Muon reads each kernel: the last two axes are a matrix, those before them count matrices."""

    def numbers(is_kernel: bool, leaf: Any) -> Any:
        # Convolutions and whatever else has more axes than a stack of matrices is left to Adam.
        if not is_kernel or leaf.ndim not in (2, 3):
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree.map(numbers, kernels(params), params)
