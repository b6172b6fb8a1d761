"""The train step: `(state, batch) → (state, metrics)`, pure, jitted once, its state donated."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from losses.loss import Loss
from models.model import Model
from models.sharding import made_whole
from models.stack import BLOCKS
from training.scaling import Dynamic
from training.state import TrainState

Metrics = dict[str, jax.Array]


def named_key(seed: int, stream: str) -> jax.Array:
    """The key of one of a run's streams of randomness (`init`, `train`, `sample`)."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def make_train_step(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: float,
    accumulate: int = 1,
    scaling: Dynamic | None = None,
    skip: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Builds the pure step: (state, batch) → (state, metrics).

    A batch has the examples on the leading axis of every array. Metrics are scalars: `loss`, `gradient_norm`, what the
    loss logs, and `skipped` and `loss_scale` where there are such.

    Args:
      ema: decay of the averaged parameters; min(ema, (1 + n)/(10 + n)) at step n, so a young average is not its start.
      accumulate: the batch is read in so many parts, one after another, and their gradients are averaged.
      scaling: of the loss, against underflow in float16; a step whose gradient is not finite is then not taken.
      skip: a step whose loss or gradient is not finite is not taken: all but its number stays as it was.
      mesh: the ambient mesh of what is traced, of which layers and losses find their axes.
    """

    def objective(params: Any, model_state: Any, key: jax.Array, batch: Any, state: TrainState) -> tuple[Any, Any]:
        variables = made_whole({"params": params, "state": model_state}, model.split, but=BLOCKS)
        result = loss(model, variables, key, batch, state.step)
        examples = jax.tree.leaves(batch)[0].shape[:1]
        if result.value.shape != examples:
            raise ValueError(
                f"{type(loss).__name__} gave a value of shape {list(result.value.shape)}; it is one an example, "
                f"{list(examples)}, of which a step takes the mean"
            )
        metrics = {"loss": result.value} | dict(result.metrics)
        value = jnp.mean(result.value)
        if scaling is not None:
            value = value * state.scaling.scale
        return value, ({name: jnp.mean(value) for name, value in metrics.items()}, result.state)

    gradient = jax.grad(objective, has_aux=True)
    update = optax.with_extra_args_support(optimizer).update

    def accumulated(state: TrainState, key: jax.Array, batch: Any) -> tuple[Any, Metrics, Any]:
        if accumulate == 1:
            gradients, (metrics, model_state) = gradient(state.params, state.model, key, batch, state)
            return gradients, metrics, model_state

        # Part i takes examples i, i + A, i + 2A, …: each device then splits its own share, and none moves.
        parts = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(-1, accumulate, *leaf.shape[1:]), 1, 0),
            batch,
        )

        def body(carry: Any, part: Any) -> tuple[Any, Metrics]:
            total, model_state = carry
            index, examples = part
            part_key = jax.random.fold_in(key, index)
            gradients, (metrics, model_state) = gradient(state.params, model_state, part_key, examples, state)
            return (jax.tree.map(jnp.add, total, gradients), model_state), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, model_state), metrics = jax.lax.scan(body, (zeros, state.model), (jnp.arange(accumulate), parts))
        mean = jax.tree.map(lambda leaf: leaf / accumulate, total)
        return mean, jax.tree.map(jnp.mean, metrics), model_state

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(named_key(seed, "train"), state.step)
        gradients, metrics, model_state = accumulated(state, key, batch)
        if scaling is not None:
            gradients = jax.tree.map(lambda leaf: leaf / state.scaling.scale, gradients)
        norm = optax.global_norm(gradients)
        metrics["gradient_norm"] = norm

        def taken(state: TrainState, gradients: Any, norm: Any, model_state: Any) -> TrainState:
            updates, optimizer_state = update(gradients, state.optimizer, state.params, norm=norm)
            params = optax.apply_updates(state.params, updates)
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(params, state.average, 1.0 - decay)
            return TrainState(state.step + 1, params, average, optimizer_state, model_state, state.scaling)

        if scaling is None and not skip:
            return taken(state, gradients, norm, model_state), metrics

        finite = jnp.isfinite(norm)
        good = finite & jnp.isfinite(metrics["loss"]) if skip else finite
        metrics["skipped"] = 1.0 - good
        left_out = lambda state, *_: state.replace(step=state.step + 1)  # noqa: E731
        # A branch, and no choice leaf by leaf, for which XLA would copy the whole state.
        after = jax.lax.cond(good, taken, left_out, state, gradients, norm, model_state)
        if scaling is None:
            return after, metrics
        metrics["gradient_norm"] = jnp.where(finite, norm, 0.0)
        metrics["loss_scale"] = state.scaling.scale
        return after.replace(scaling=scaling.after(state.scaling, finite)), metrics

    if mesh is None:
        return train_step

    def on_mesh(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return train_step(state, batch)

    return on_mesh
