"""An experiment is a composition of values; its printed form is the configuration."""

from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal

from flax import linen as nn

from data.dataset import Dataset
from losses.loss import Loss
from metrics.metric import Metric
from models.codec import Codec
from models.embedder import Embedder
from models.language_model import OverTokens, TokenModel
from models.model import Model
from models.remat import policy
from samplers.sampler import NoSampler, Sampler
from training.config import field_names
from training.mesh import Mesh
from training.optimizer import Optimizer
from training.scaling import Dynamic


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the run is saved and what is kept."""

    every: int = 1000  # steps between saves; the last step is always saved
    latest: int = 2  # how many of the newest to keep
    keep_every: int = 0  # besides, keep those at multiples of this step; 0 keeps none

    def __post_init__(self) -> None:
        if self.every < 1 or self.latest < 1 or self.keep_every < 0:
            raise ValueError(f"{self}: every and latest must be at least 1, keep_every at least 0")


# Settings in which a run may differ from the one that it resumes: of where it runs and how it is watched. `on_nan` is
# among them so that a run that has stopped at a bad step can leave it out.
FREE = ("mesh", "workers", "on_nan", "watchdog", "checkpoints", "log_every", "sample_every", "sample_count")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides what a run computes, and how it is run."""

    data: Dataset  # what to read
    model: Model  # what to train
    loss: Loss  # what to minimise
    sampler: Sampler = field(default_factory=NoSampler)  # how to draw, by default
    metrics: tuple[Metric, ...] = ()  # what to measure after the last step, on the averaged parameters
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int  # of the optimiser
    batch_size: int  # of one step, over all devices and accumulated parts
    accumulate: int = 1  # parts a batch is split into, their gradients averaged
    ema: float = 0.999  # decay of the averaged parameters, min(ema, (1+n)/(10+n)) at step n
    initial: str = ""  # a finished run whose averaged parameters this one starts from
    teacher: str = ""  # a finished run whose averaged parameters go to the model's own teacher
    seed: int = 0  # decides initial parameters, data order and all noise
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # compute dtype of nets that do not set their own
    loss_scaling: Dynamic | None = None  # of the loss before its gradient; float16 needs it, and nothing else does
    remat: str = "none"  # checkpointing of what sets none: none, dots, full, group(k), sqrt … (models/remat.py)
    mesh: Mesh = field(default_factory=Mesh)
    workers: int = 0  # processes that read the data; 0 reads in threads of this one
    on_nan: Literal["stop", "skip"] = "stop"  # at a step that is not finite: stop, or leave it out and count it
    watchdog: float = 20.0  # says so when a step takes so many times the median; 0 says nothing
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    log_every: int = 50  # steps between lines of the log
    sample_every: int = 0  # steps between pictures of samples; 0 draws none
    sample_count: int = 64  # samples in a picture

    def __post_init__(self) -> None:
        positive = ("batch_size", "accumulate", "log_every", "sample_count")
        wrong = [f"{name}={getattr(self, name)}" for name in positive if getattr(self, name) < 1]
        others = ("steps", "sample_every", "workers", "watchdog")
        wrong += [f"{name}={getattr(self, name)}" for name in others if getattr(self, name) < 0]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} is too small")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} parts")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed} is not in [0, 2^31)")
        policy(self.remat, bijection=True)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} is not in [0, 1)")

    def pinned(self) -> "Experiment":
        """With what the data takes from its records (an alphabet) in its settings, as a run's folder has it."""
        return replace(self, data=self.data.pinned())

    def resolved_model(self) -> Model:
        """The model with what it leaves open filled in.

        `precision` and `remat` where a net says neither, `remat` of the outermost chain of blocks alone; the data's
        grid, tokens and levels where a model does not.
        """
        model = _resolve(self.model, {"dtype": self.precision, "remat": self.remat, "grid": self.data.grid})
        if isinstance(model, OverTokens) and model.vocabulary is None:
            if isinstance(model, TokenModel) and model.stop is None:
                model = replace(model, stop=self.data.stop)
            model = replace(model, vocabulary=self.data.vocabulary or None)
        if isinstance(model, Embedder) and model.classes is None:
            model = replace(model, classes=self.data.num_classes or None)
        if isinstance(model, Codec) and model.levels is None and self.data.bin_width:
            model = replace(model, levels=round(2.0 / self.data.bin_width) + 1)
        return model


def _resolve(value: Any, defaults: dict[str, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_resolve(item, defaults) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    names = field_names(type(value))
    # A chain that is checkpointed computes its links again as they are: the networks within them keep nothing for long.
    is_chain = "remat" in names and getattr(value, "is_chain", True)
    inner = defaults | {"remat": "none"} if is_chain else defaults
    changes = {}
    for name in names:
        current = getattr(value, name)
        if (isinstance(value, nn.Module) or name == "remat") and name in defaults and current is None:
            changes[name] = defaults[name]
        elif is_dataclass(current) or isinstance(current, tuple):
            changes[name] = _resolve(current, inner)
    return value.clone(**changes) if isinstance(value, nn.Module) else replace(value, **changes)


def without_remat(value: Any) -> Any:
    """A model whose every `remat` is `none`: the same function, with derivatives of every kind."""
    if isinstance(value, tuple):
        return tuple(map(without_remat, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes = {name: without_remat(getattr(value, name)) for name in field_names(type(value))}
    if "remat" in changes:
        changes["remat"] = "none"
    return value.clone(**changes) if isinstance(value, nn.Module) else replace(value, **changes)
