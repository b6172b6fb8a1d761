"""Everything an experiment needs that is made once: mesh, batches, compiled functions. Wrong settings fail here."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from data.dataset import Batches
from models.embedder import Embedder
from models.flows.flow import Flow
from models.language_model import OverTokens
from models.model import Model
from samplers.sampler import NoSampler
from training.distributed import once
from training.draw import Drawer
from training.errors import UserError
from training.experiment import Experiment, without_remat
from training.handover import Handover
from training.inputs import default_condition, example_batch
from training.mesh import abstract, batch_parts, by_batch, placed, put_batch, replicated, rows_here
from training.state import TrainState, initial_state
from training.step import Metrics, make_train_step, named_key


class Plan:
    """An experiment made ready to run; before anything is computed, its step and its sampler have been traced.

    Raises:
      UserError: a setting is wrong.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        try:
            self.mesh = experiment.mesh.build()
            parts = batch_parts(self.mesh)
            if experiment.batch_size % (parts * experiment.accumulate):
                raise ValueError(
                    f"batch_size={experiment.batch_size} does not divide over {parts} devices and "
                    f"accumulate={experiment.accumulate} parts"
                )
            experiment.data.check_batch_size(experiment.batch_size)
            experiment.loss.check_parts(experiment.accumulate)
            if experiment.precision == "float16" and experiment.loss_scaling is None:
                raise ValueError(
                    "precision=float16 loses small gradients: scale the loss (--loss-scaling dynamic), or take bfloat16"
                )
            self.model = experiment.resolved_model()
            self._check_classes()
            self._check_levels()
            self._check_tokens()
            self.optimizer = experiment.optimizer.build(experiment.steps)
            self.batch_sharding = by_batch(self.mesh)
            self.batches = Batches(
                experiment.data.source("train"),
                experiment.batch_size,
                experiment.seed,
                None if jax.process_count() == 1 else rows_here(self.batch_sharding, experiment.batch_size),
            )
            step = self.step_of(self.model)
            batch = example_batch(experiment)
            shapes = jax.eval_shape(self._initial, batch)
            places = placed(shapes, self.mesh, self.model.split, experiment.mesh.fsdp_from)
            jax.eval_shape(step, shapes, batch)
            self._check_sampler(shapes)
            self.handover = Handover.of(experiment, self.model, shapes)
            for metric in experiment.metrics:
                metric.check(experiment.data)
        except (ValueError, TypeError, ArithmeticError, StopIteration) as error:
            raise UserError(str(error).strip() or f"{type(error).__name__} while building the experiment") from error
        except NotImplementedError as error:  # what jax says of a backward pass that is to be differentiated forwards
            if "custom_lin" not in str(error):
                raise
            raise UserError(
                "nested, binomial and reversible have no forward-mode derivative, which this loss takes of the model "
                f"(remat={experiment.remat}); full, group(k), sqrt, dots and names have"
            ) from error
        whole = replicated(self.mesh)
        self.state_like = abstract(shapes, places)
        self.batch_like = abstract(batch, jax.tree.map(lambda _: self.batch_sharding, batch))
        self.train_step = jax.jit(
            step, donate_argnums=0, in_shardings=(places, self.batch_sharding), out_shardings=(places, whole)
        )
        split = self.batch_sharding if self.model.data_batches else None
        fresh = jax.jit(self._initial, in_shardings=split, out_shardings=places)
        self.initial = lambda: self.handover.into(fresh(self._first_batch()), self.mesh, experiment.mesh.fsdp_from)
        self.draw = Drawer(self.model, experiment.sampler, experiment.data.shape, self.mesh)

    def step_of(self, model: Model) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The pure train step of the experiment, were this its model."""
        experiment = self.experiment
        return make_train_step(
            model,
            experiment.loss,
            self.optimizer,
            seed=experiment.seed,
            ema=experiment.ema,
            accumulate=experiment.accumulate,
            scaling=experiment.loss_scaling,
            skip=experiment.on_nan == "skip",
            mesh=self.mesh,
        )

    def _first_batch(self) -> Mapping[str, Any]:
        """What `init` is shown: zeros, or the run's first batches, of all devices, where it looks at values."""
        if not self.model.data_batches:
            return example_batch(self.experiment)
        once(self.experiment.data.prepare)
        batches = [self.batches[i] for i in range(self.model.data_batches)]
        return put_batch({name: np.concatenate([b[name] for b in batches]) for name in batches[0]}, self.batch_sharding)

    def _initial(self, batch: dict[str, Any]) -> TrainState:
        key, scaling = named_key(self.experiment.seed, "init"), self.experiment.loss_scaling
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return initial_state(self.model, self.optimizer, key, batch, scaling)

    def _check_classes(self) -> None:
        classes, there = getattr(self.model, "num_classes", 0), self.experiment.data.num_classes
        if classes and classes != there:
            raise ValueError(f"the model is conditioned on {classes} classes, but the data has {there}")
        if isinstance(self.model, Embedder) and self.model.classes != there:
            told = self.model.classes or "no"
            raise ValueError(f"the embedder's head has {told} classes, but the data has {there or 'none'}")
        if isinstance(self.model, Embedder):
            labels = self.experiment.data.source("train").labels
            missing = [] if labels is None else np.setdiff1d(np.arange(there), labels).tolist()
            if missing:
                more = f", nor have {len(missing) - 1} more" if len(missing) > 1 else ""
                raise ValueError(f"class {missing[0]} of 0 … {there - 1} has no training example{more}")

    def _check_levels(self) -> None:
        """A flow's bits are those of the data only if both have the same bins."""
        if isinstance(self.model, Flow):
            own, there = self.model.bin_width, self.experiment.data.bin_width
            if (own is None) != (there is None) or (own and there and abs(own / there - 1.0) > 1e-6):
                levels = "is continuous" if there is None else f"has {round(2.0 / there) + 1} levels"
                raise ValueError(
                    f"the flow's dequantisation ({self.model.dequantize}) does not fit the data, which {levels}"
                )

    def _check_tokens(self) -> None:
        """A model of tokens has those of its data; what is carried from batch to batch goes on where it was."""
        data, streams = self.experiment.data, getattr(self.experiment.data, "streams", 0)
        if isinstance(self.model, OverTokens) and data.vocabulary != self.model.tokens:
            raise ValueError(f"the model has {self.model.tokens} tokens, but the data has {data.vocabulary}")
        carried, rows = getattr(self.model, "carried", False), self.experiment.batch_size
        if carried != bool(streams) or (carried and (streams, self.experiment.accumulate) != (rows, 1)):
            raise ValueError(
                f"a state is carried along streams, as many as batch_size={rows}, with accumulate=1: "
                f"got carried={carried}, streams={streams}, accumulate={self.experiment.accumulate}"
            )

    def _check_sampler(self, shapes: TrainState) -> None:
        sampler = self.experiment.sampler
        if isinstance(sampler, NoSampler) and self.experiment.sample_every:
            raise ValueError(f"a {type(self.model).__name__} draws no samples: sample_every must be 0")
        if not isinstance(sampler, NoSampler):
            variables = {"params": shapes.average, "state": shapes.model}
            condition, shape = default_condition(self.model, self.experiment.data, 2), self.experiment.data.shape
            draw = lambda v, keys: sampler(without_remat(self.model), v, keys, condition, shape)  # noqa: E731
            jax.eval_shape(draw, variables, jax.random.split(jax.random.key(0), 2))

    def samples(self, state: TrainState, n: int) -> np.ndarray:
        """The run's first n samples, from the averaged parameters."""
        variables = {"params": state.average, "state": state.model}
        key = named_key(self.experiment.seed, "sample")
        return self.draw(variables, key, n, default_condition(self.model, self.experiment.data, n)).x
