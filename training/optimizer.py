"""The optimiser: clipping, Adam(W), warm-up and cosine decay, as one optax chain."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam with decoupled weight decay."""

    learning_rate: float = 2e-4  # at its peak
    warmup: int = 0  # steps of linear warm-up from 0
    decay: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0 on the last step
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # of kernels alone: biases, scales and tables are left where the gradient takes them
    clip: float = 1.0  # largest global norm of the gradient; 0 does not clip

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate of each step of a run of `steps`."""
        if self.decay == "cosine":
            after = optax.cosine_decay_schedule(self.learning_rate, max(steps - self.warmup, 1))
        else:
            after = optax.constant_schedule(self.learning_rate)
        if not self.warmup:
            return after
        # Step 0 already moves: a rate of exactly 0 would waste it.
        rise = optax.linear_schedule(self.learning_rate / self.warmup, self.learning_rate, max(self.warmup - 1, 1))
        return optax.join_schedules([rise, after], [self.warmup])

    def build(self, steps: int) -> optax.GradientTransformation:
        decay, mask = self.weight_decay, kernels if self.weight_decay else None
        adam = optax.adamw(self.schedule(steps), self.b1, self.b2, self.eps, weight_decay=decay, mask=mask)
        return optax.chain(optax.clip_by_global_norm(self.clip), adam) if self.clip else adam


def kernels(params: Any) -> Any:
    """Which leaves are matrices of layers, as Linen names them; shapes do not tell, where layers are stacked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)
