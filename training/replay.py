"""`train.py --replay STEP`: a step of a run once more, to see where what is not finite comes from.

A batch and a step's noise are functions of the seed and the step, so that the run's own checkpoint before it leads to
the very same state. Nothing of the run is changed; the batch is written beside it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.npz import write_npz
from training.checkpoint import Store
from training.errors import UserError
from training.experiment import Experiment
from training.links import check_links
from training.plan import Plan
from training.run import CONTENTS, Run
from training.state import TrainState
from training.step import named_key

SHOWN = 10  # names and examples that are listed


def replay(experiment: Experiment, folder: Path, step: int) -> Iterator[str]:
    """Takes the run up to before `step`, and tells of that step, line by line.

    Raises:
      UserError: the folder holds no such run, or the run has no such step.
    """
    if jax.process_count() > 1:
        raise UserError("--replay is for one process; its mesh may be another than the run's")
    if not 1 <= step <= experiment.steps:
        raise UserError(f"--replay {step}: the run has the steps 1 to {experiment.steps}")
    experiment = experiment.pinned()
    run = Run(folder)
    check_links(folder, CONTENTS)
    run.check_same(experiment)
    plan = Plan(experiment)
    restored = Store(folder).restore(plan.state_like, before=step) if (folder / "checkpoints").is_dir() else None
    state = restored[0] if restored else plan.initial()
    first = int(state.step)
    experiment.data.prepare()
    yield f"step {step}, from the checkpoint of step {first}" if restored else f"step {step}, from the first step on"
    for position in range(first, step - 1):
        state, _ = plan.train_step(state, plan.batches[position])

    batch = plan.batches[step - 1]
    path = folder / "replay" / f"step_{step:07d}.npz"
    path.parent.mkdir(exist_ok=True)
    write_npz(path, batch)
    yield f"batch {step - 1}, examples {(step - 1) * experiment.batch_size} and following of the run; written to {path}"
    for name, value in batch.items():
        yield f"  {name} {value.dtype}{list(value.shape)}: {_range(value)}"
    yield f"parameters before the step: {_wrong_leaves(state.params)}"

    values, gradients = jax.jit(lambda state, batch: _values(plan, state, batch))(state, batch)
    values = np.asarray(values)
    bad = np.flatnonzero(~np.isfinite(values))
    listed = ", ".join(f"{i} ({values[i]})" for i in bad[:SHOWN])
    yield f"loss of each example: {_range(values)}" + (f"; not finite: {listed}{_more(len(bad))}" if len(bad) else "")
    yield f"gradient: {_wrong_leaves(gradients)}"
    _, metrics = plan.train_step(state, batch)
    yield "the step's metrics: " + ", ".join(f"{name} {float(value):.6g}" for name, value in sorted(metrics.items()))


def _values(plan: Plan, state: TrainState, batch: Any) -> tuple[jax.Array, Any]:
    """Each example's loss, in the order of the batch, and the gradient of their mean: with the noise of the step."""
    experiment, parts = plan.experiment, plan.experiment.accumulate
    key = jax.random.fold_in(named_key(experiment.seed, "train"), state.step)

    def of_part(params: Any, model_state: Any, part_key: jax.Array, part: Any) -> tuple[jax.Array, Any]:
        found = experiment.loss(plan.model, {"params": params, "state": model_state}, part_key, part, state.step)
        return jnp.mean(found.value), (found.value, found.state)

    gradient, model_state, values = None, state.model, []
    for i in range(parts):  # as training/step.py takes them
        part = jax.tree.map(lambda leaf: leaf[i::parts], batch)  # noqa: B023
        part_key = jax.random.fold_in(key, i) if parts > 1 else key
        with jax.sharding.use_abstract_mesh(plan.mesh.abstract_mesh):
            more, (value, model_state) = jax.grad(of_part, has_aux=True)(state.params, model_state, part_key, part)
        gradient = more if gradient is None else jax.tree.map(jnp.add, gradient, more)
        values.append(value)
    return jnp.stack(values, axis=1).reshape(-1), jax.tree.map(lambda leaf: leaf / parts, gradient)


def _range(value: np.ndarray) -> str:
    finite = value[np.isfinite(value)] if np.issubdtype(value.dtype, np.floating) else value
    wrong = value.size - finite.size
    span = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "nothing finite"
    return span + (f", {wrong} of {value.size} not finite" if wrong else "")


def _wrong_leaves(tree: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    wrong = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if not np.isfinite(np.asarray(leaf)).all()
    ]
    if not wrong:
        return "all finite"
    return f"not finite in {len(wrong)} of {len(leaves)} arrays: {', '.join(wrong[:SHOWN])}{_more(len(wrong))}"


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""
