"""The models of reproductions/bits_per_dim.py: every family as a density of the same images.

None is told a class: an experiment's classes are left out here. What each one's number is:

    exact      −log₂ P(x)/D of an image's levels
    bound      bounds that from above in expectation, with one draw an image of what it is an expectation over:
               uniform dequantisation (flows), x_t (the variational bound), masks; or by the encoder's codes
    estimate   such a bound, its density by an ODE solved to a tolerance, most by a random trace of one draw
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flax import linen as nn

from data.image_tokens import ImageTokens
from data.images import TFDS
from experiments import ffjord_mnist
from metrics.examples import OverExamples
from metrics.flow_likelihood import FlowLikelihood
from metrics.likelihood import Likelihood
from metrics.masked_likelihood import MaskedLikelihood
from metrics.token_likelihood import TokenLikelihood
from metrics.two_stage import TwoStageLikelihood
from metrics.vlb import VLB
from models.concatsquash import ConcatSquash
from models.flows.cnf import CNF
from models.flows.priors import ClassNormal, Normal
from models.trace import Hutchinson, Trace
from reproductions.runs import UNSEEN, shortened
from samplers.adaptive import Dopri5
from samplers.ddpm import DDPM
from samplers.diffusion import Diffusion
from samplers.flow import FlowSampler
from samplers.integrators import Adaptive, FixedStep
from samplers.sampler import Sampler
from training.cli import load_experiment
from training.codes import Codes
from training.experiment import Experiment

Kind = Literal["exact", "bound", "estimate"]
FOLDER = Path("runs") / "bits_per_dim"
DATA = ("digits", "mnist")
EXAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Density:
    """A row: what is trained, what is measured of it and how it is drawn from."""

    name: str  # of the row
    title: str
    kind: Kind
    folder: Path  # of the run, which two rows may share
    experiment: Experiment
    metric: OverExamples
    sampler: Sampler
    calls: int | None = None  # of the network, one after the other, for a sample; None: as the sampler or solver says
    needs: tuple[tuple[Path, Experiment], ...] = ()  # runs that have to be there first, a first stage

    @property
    def kept(self) -> Path:
        """Where what is measured is kept, beside the run."""
        return self.folder.parent / f"{self.name}.json"


def without_classes(value: Any) -> Any:
    """A model, or what one is made of, that is told no class."""
    if isinstance(value, ClassNormal):
        return Normal()
    if isinstance(value, tuple):
        return tuple(map(without_classes, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for field in fields(value):
        if field.name in ("parent", "name") or not field.init:
            continue
        old = getattr(value, field.name)
        new = {"num_classes": 0, "label_dropout": 0.0}.get(field.name, without_classes(old))
        if new != old:
            changes[field.name] = new
    if not changes:
        return value
    return value.clone(**changes) if isinstance(value, nn.Module) else replace(value, **changes)


def alone(experiment: Experiment, steps: int = 0) -> Experiment:
    """As the table trains it: told no class, in so few steps where some are said, without a look on the way."""
    cut = shortened(experiment, steps) if steps else {}
    return replace(
        experiment,
        model=without_classes(experiment.model),
        loss=without_classes(experiment.loss),
        **{**cut, **UNSEEN},
    )


def solved(model: Any, trace: Trace) -> Any:
    """A flow whose continuous parts are solved to a tolerance, wherever they stand in it."""
    if isinstance(model, tuple):
        return tuple(solved(part, trace) for part in model)
    if isinstance(model, CNF):
        return replace(model, integrator=Adaptive(), trace=trace)
    if not is_dataclass(model) or isinstance(model, type | nn.Module):
        return model
    own = {field.name: getattr(model, field.name) for field in fields(model) if field.init}
    changes = {name: new for name, old in own.items() if (new := solved(old, trace)) != old}
    return replace(model, **changes) if changes else model


def densities(data: str, steps: int = 0, examples: int = EXAMPLES) -> tuple[Density, ...]:
    """The rows of a table in the order of their families.

    Args:
      steps: of training, for all, in folders of their own; 0 is each one's own.
      examples: of the test split, the first so many or all, in every row.
    """
    where = FOLDER / (f"{data}_cut" if steps else data)
    rows = {"digits": _digits, "mnist": _mnist}[data](where, steps)
    return tuple(replace(row, metric=replace(row.metric, examples=examples)) for row in rows)


def _flow(where: Path, name: str, title: str, of: Experiment, calls: int | None = 1, batch: int = 100) -> Density:
    return Density(
        name=name,
        title=title,
        kind="bound" if calls else "estimate",
        folder=where / name,
        experiment=of,
        metric=FlowLikelihood(batch_size=batch),
        sampler=FlowSampler(),
        calls=calls,
    )


def _denoisers(where: Path, ddpm: Experiment, rectified: Experiment) -> Iterator[Density]:
    by_ode = Diffusion(solver=Dopri5())
    of_ddpm = Density(
        name="ddpm_ode",
        title="DDPM, probability flow",
        kind="estimate",
        folder=where / "ddpm",
        experiment=ddpm,
        metric=Likelihood(trace=Hutchinson()),
        sampler=by_ode,
    )
    ancestral = Diffusion(solver=DDPM(), steps=1000)
    bound = VLB()
    yield replace(of_ddpm, name="ddpm_vlb", title="DDPM, bound", kind="bound", metric=bound, sampler=ancestral)
    yield of_ddpm
    folder = where / "rectified_flow"
    yield replace(of_ddpm, name="rectified_flow", title="rectified flow", folder=folder, experiment=rectified)


def _two_stages(where: Path, first: Experiment, prior: Experiment) -> Density:
    return Density(
        name="vqvae",
        title="VQ-VAE, transformer prior",
        kind="bound",
        folder=where / "vqvae_prior",
        experiment=replace(prior, data=Codes(codes=str(where / "vqvae"))),
        metric=TwoStageLikelihood(),
        sampler=prior.sampler,
        needs=((where / "vqvae", first),),
    )


def _pixels(where: Path, name: str, title: str, experiment: Experiment, metric: OverExamples) -> Density:
    return Density(
        name=name,
        title=title,
        kind="bound" if isinstance(metric, MaskedLikelihood) else "exact",
        folder=where / name,
        experiment=experiment,
        metric=metric,
        sampler=experiment.sampler,
    )


def _digits(where: Path, steps: int) -> Iterator[Density]:
    """Scikit-learn's: D = 64, 17 levels, 1,437 to train on and 360 held out."""
    of = lambda name: alone(load_experiment(name), steps)  # noqa: E731
    yield _flow(where, "nice", "NICE", of("nice_digits"))
    yield _flow(where, "realnvp", "RealNVP", of("realnvp_digits"))
    yield _flow(where, "glow", "Glow", of("glow_digits"))
    yield _flow(where, "tarflow", "TarFlow", of("tarflow_digits"), calls=4 * 15)
    yield _flow(where, "ffjord", "FFJORD", of("ffjord_digits"), calls=None, batch=60)
    yield from _denoisers(where, of("digits_ddpm"), of("digits_flow"))
    yield _two_stages(where, of("vqvae_digits"), of("vqvae_prior_transformer"))
    tokens, masked = TokenLikelihood(), MaskedLikelihood(draws=64)
    yield _pixels(where, "pixelcnn", "gated PixelCNN", of("pixel_pixelcnn"), tokens)
    yield _pixels(where, "lstm", "pixel LSTM", of("pixel_lstm"), tokens)
    yield _pixels(where, "transformer", "pixel transformer", of("pixel_transformer"), tokens)
    yield _pixels(where, "masked", "masked transformer", of("pixel_masked"), masked)


def _mnist(where: Path, steps: int) -> Iterator[Density]:
    """MNIST: D = 784, 256 levels, 60,000 to train on, 1,000 held out; rows of ten minutes to an hour on two CPU cores.

    The experiments' own steps take hours there. Fewer are one schedule of that length, not the beginning of a longer.
    """

    def of(name: str, own: int, **changes: Any) -> Experiment:
        return alone(replace(load_experiment(name), **changes), steps or own)

    yield _flow(where, "nice", "NICE", of("nice_mnist", 3000, data=TFDS(name="mnist")))
    yield _flow(where, "realnvp", "RealNVP", of("realnvp_mnist", 500))
    yield _flow(where, "glow", "Glow", of("glow_mnist", 300))
    yield _flow(where, "tarflow", "TarFlow", of("tarflow_mnist", 500), calls=4 * 48)
    dense = ffjord_mnist.flow(ConcatSquash(width=512), FixedStep(method="rk4", steps=6))
    ffjord = of("ffjord_mnist", 1000, model=dense, batch_size=128)
    yield _flow(where, "ffjord", "FFJORD, dense", ffjord, calls=None)
    yield from _denoisers(where, of("mnist_mlp", 3000), of("mnist_flow", 1000))
    yield _two_stages(where, of("vqvae_mnist", 1200), of("vqvae_prior_transformer", 1000))
    data, tokens = ImageTokens(images=TFDS(name="mnist")), TokenLikelihood(batch_size=50)
    pixels = lambda name, own, **more: of(name, own, data=data, batch_size=16, **more)  # noqa: E731
    yield _pixels(where, "pixelcnn", "gated PixelCNN", pixels("pixel_pixelcnn", 500), tokens)
    yield _pixels(where, "lstm", "pixel LSTM", pixels("pixel_lstm", 800), tokens)
    model: Any = load_experiment("pixel_transformer").model
    longer = replace(model, backbone=model.backbone.clone(context=784))
    yield _pixels(where, "transformer", "pixel transformer", pixels("pixel_transformer", 500, model=longer), tokens)
