"""A tiny run of each family, for tests of meshes and of several processes."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from training.cli import load_experiment
from training.experiment import Experiment
from training.mesh import Mesh, put_batch
from training.plan import Plan

STEPS = 20
# diffusion, flow, transformer, codes by EMA, margin softmax
FAMILIES = ("digits_ddpm", "glow_digits", "char_transformer", "vqvae_digits", "margin_omniglot_arcface")


def family(name: str, mesh: Mesh) -> Experiment:
    """Its batch divides over eight devices; a margin's head is split over `model`."""
    tiny = load_experiment(name, tiny=True)
    changes: dict[str, Any] = {"model": replace(tiny.model, class_axis="model")} if name.startswith("margin") else {}
    return replace(tiny, mesh=mesh, batch_size=16, steps=STEPS, sample_every=0, metrics=(), **changes)


def run(plan: Plan) -> tuple[Any, np.ndarray]:
    """The state after all steps, and their losses."""
    state, losses = plan.initial(), []
    for step in range(STEPS):
        state, metrics = plan.train_step(state, put_batch(plan.batches[step], plan.batch_sharding))
        losses.append(metrics["loss"])
    return state, np.asarray(jax.device_get(losses))
