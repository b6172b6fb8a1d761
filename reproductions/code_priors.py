"""Priors over the codes of one VQ-VAE: samples, bits/dim, and quality against the sequential steps of a sample.

A transformer, a gated PixelCNN and an LSTM draw one code after another (1711.00937 §4.2), a masked transformer several
in a step (2202.04200), latent diffusion all at once in steps of a solver (2112.10752). Each is told the class; so are
the bits/dim, which are then at most log₂(10) of an image's bits lower. They bound −log₂ P(x) of held-out images
(metrics/two_stage.py); of the masked prior the codes' part is a bound, too, and a density of latents has none.

Samples are of all classes in turn, and so are the real images of the test split beside them and their reconstructions,
which are what a perfect prior could reach. Fréchet distances are to the training split, in the features of
metrics/classifier.py, and are the larger the fewer images there are. Seconds a sample are of 500 at once,
without compiling and decoding; encoding the training split is in no prior's seconds of training where it has been done
here.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

from data.dataset import Dataset
from metrics.class_accuracy import read_as
from metrics.confidence import sure_of
from metrics.frechet import frechet_distance
from metrics.two_stage import TwoStageLikelihood
from models.masked import MaskedModel
from reproductions.judge import judge_of
from reproductions.reproduction import Cut, Row, Source
from reproductions.runs import UNSEEN, cost, in_runs, made, run_of, shortened
from samplers.masked import MaskedDecoding
from samplers.sampler import Sampler
from training.cli import load_experiment
from training.codes import Codes
from training.picture import grid
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Neural Discrete Representation Learning; MaskGIT; Latent Diffusion",
    arxiv="1711.00937, 2202.04200, 2112.10752",
    equation="§4.2; §3.1 to 3.3; §3.2",
    number="4.67 bits/dim, CIFAR-10 (VQ-VAE)",
)
FIRST: dict[str, str | Cut] = {"tiny": Cut("vqvae_digits", steps=100), "small": "vqvae_mnist"}
# experiment → what the figure calls it
PRIORS = {
    "vqvae_prior_transformer": "transformer",
    "vqvae_prior_pixelcnn": "gated PixelCNN",
    "vqvae_prior_lstm": "LSTM",
    "vqvae_prior_masked": "masked transformer",
    "latent_diffusion_mnist": "latent diffusion",
}
MASKED_STEPS = {"small": (1, 4, 8, 12, 49), "tiny": (1, 4)}  # the last: one code a step
STEPS = 30  # of a cut training
SAMPLES, KEPT, CLASSES = {"tiny": 100, "small": 1000}, 100, 10
REAL, RECONSTRUCTED = "real images", "reconstructions"
SIZE = (14, 4.8)


def prior(name: str, scale: str) -> Path:
    """The run of a prior over what the scale's first stage, which has to be there, makes of its images."""
    experiment, changes = load_experiment(name), {}
    if scale == "tiny":
        codes = str(in_runs("vqvae_digits", scale))
        data = replace(experiment.data, codes=codes)  # pyright: ignore[reportCallIssue]
        changes = {"data": data, **shortened(name, STEPS), **UNSEEN}
        if isinstance(experiment.sampler, MaskedDecoding):
            changes["sampler"] = replace(experiment.sampler, steps=4)
    replace(experiment, **changes).data.prepare()
    return made(name, in_runs(name, scale), **changes)


def in_turn(label: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """The first records of each class, one of each in turn: as many of each as all have, at most so many together."""
    own = [np.flatnonzero(label == value) for value in np.unique(label)]
    each = min(most // len(own), *map(len, own))
    return np.stack([records[:each] for records in own], axis=1).reshape(-1)


class ByClass:
    """What is said of samples: how they look to a classifier of real images."""

    def __init__(self, images: Dataset, samples: int) -> None:
        self.classifier = judge_of(images)
        self.train, test = images.arrays("train", 60_000), images.arrays("test", 10_000)
        self.records = in_turn(test["label"], samples)  # of the test split, to be compared with as many samples
        self.test = {name: value[self.records] for name, value in test.items()}

    def __call__(self, x: Float[np.ndarray, "n *s"], label: Int[np.ndarray, " n"]) -> Row:
        return {
            "samples": len(x),
            "confident": sure_of(self.classifier, x, 0.9),
            "class_accuracy": read_as(self.classifier, x, label),
            "frechet_classifier": frechet_distance(x, self.train["x"], self.classifier.features),
        }


def references(first: Path, judge: ByClass) -> Iterator[Row]:
    """Real images, and what becomes of them in the first stage."""
    x, label = judge.test["x"], judge.test["label"]
    whole_split = {"class_accuracy": judge.classifier.accuracy}
    yield {"model": REAL, **judge(x, label), **whole_split, "images": x[:KEPT]}
    codes = Codes(codes=str(first))
    x = codes.shown(codes.arrays("test", 10_000)["x"][judge.records])
    yield {"model": RECONSTRUCTED, **judge(x, label), **cost(first, read(first)), "images": x[:KEPT]}


def bits(run: Trained) -> Row:
    """Bits/dim of held-out images; nothing where the prior is a density."""
    data = run.experiment.data
    if not isinstance(data, Codes):
        return {}
    found = TwoStageLikelihood()(run.evaluation())
    numbers: Row = {name.removesuffix("_given_label"): value for name, value in found.items()}
    return numbers | {"probability_of_codes": "bound" if isinstance(run.model, MaskedModel) else "exact"}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    first, samples = run_of(FIRST[scale]), SAMPLES[scale]
    judge = ByClass(Codes(codes=str(first)).pictured, samples)
    yield from references(first, judge)
    for name, model in PRIORS.items():
        folder = prior(name, scale)
        run = read(folder)
        data, sampler = run.experiment.data, run.experiment.sampler
        samplers: list[Sampler] = [sampler]
        if isinstance(sampler, MaskedDecoding):
            samplers = [replace(sampler, steps=steps) for steps in MASKED_STEPS[scale]]
        about = {**bits(run), **cost(folder, run)}
        for sampler in samplers:
            drawn, seconds = run.draw(sampler, samples)
            x = data.shown(drawn.x)
            # One code after another: as many steps as codes.
            row: Row = {"model": model, "steps": sampler.network_calls() or data.shape[0], **about}
            row |= {"seconds_a_sample": seconds / samples, **judge(x, np.arange(samples) % CLASSES)}
            yield row | {"images": x[:KEPT]}


def name_of(row: Row, rows: list[Row]) -> str:
    """The model, with its steps where there are several numbers of them."""
    if sum(other["model"] == row["model"] for other in rows) == 1:
        return row["model"]
    return f"{row['model']}, {row['steps']} step" + ("s" if row["steps"] != 1 else "")


def lines_of_references(axes: Any, rows: list[Row]) -> None:
    for model, style in ((RECONSTRUCTED, "--"), (REAL, ":")):
        level = next(row["frechet_classifier"] for row in rows if row["model"] == model)
        axes.axhline(level, color="grey", ls=style, lw=1.2, label=model)


def against_steps(axes: Any, steps: set[int], label: str) -> None:
    """What a panel of Fréchet distances has beside its points."""
    axes.set_xticks(sorted(steps), [str(tick) for tick in sorted(steps)], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))  # where there are few decades
    axes.set(xlabel=label, ylabel="Fréchet distance, classifier features")
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)  # above, clear of the lines


def draw(rows: list[Row], figure: Figure) -> None:
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.4, 1))
    axes = parts[0].subplots()
    shape = rows[0]["images"].shape[1:]
    pairs = [row["images"][: 2 * CLASSES].reshape(2, CLASSES, *shape).swapaxes(0, 1) for row in rows]
    sheet = grid(np.concatenate(pairs).reshape(-1, *shape), columns=2 * CLASSES)
    axes.imshow(sheet)
    height, width = len(sheet) / len(rows), sheet.shape[1] / CLASSES
    axes.set_yticks([(i + 0.5) * height for i in range(len(rows))], [name_of(row, rows) for row in rows])
    axes.set_xticks([(i + 0.5) * width for i in range(CLASSES)], [str(i) for i in range(CLASSES)])
    axes.tick_params(length=0, labelsize=9, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes = parts[1].subplots()
    for model, marker in zip(PRIORS.values(), "osv^D", strict=False):
        own = [row for row in rows if row["model"] == model]
        x, y = [row["steps"] for row in own], [row["frechet_classifier"] for row in own]
        axes.loglog(x, y, marker=marker, ms=6, lw=1.3, ls="-" if len(own) > 1 else "none", label=model)
    lines_of_references(axes, rows)
    against_steps(axes, {row["steps"] for row in rows if "steps" in row}, "sequential steps of a sample")


def cell(value: float | None, width: int, form: str) -> str:
    return f"{'–' if value is None else format(value, form):>{width}}"


def summary(rows: list[Row]) -> Iterator[str]:
    wide = max(len(name_of(row, rows)) for row in rows)
    heads = f"{'steps':>6}{'confident':>11}{'right':>8}{'Fréchet':>9}{'parameters':>12}{'train s':>9}{'ms/sample':>11}"
    yield f"{'':{wide}}{heads}  codes + images"
    for row in rows:
        seconds = row.get("seconds_a_sample")
        line = f"{name_of(row, rows):{wide}}{cell(row.get('steps'), 6, 'd')}{row['confident']:11.3f}"
        line += f"{row['class_accuracy']:8.3f}{row['frechet_classifier']:9.3f}{cell(row.get('parameters'), 12, ',d')}"
        line += cell(row.get("training_seconds"), 9, ".0f") + cell(seconds and 1e3 * seconds, 11, ".2f")
        if "bits_per_dim" in row:
            codes, images = row["bits_per_dim_of_codes"], row["bits_per_dim_of_images"]
            end = ", of codes a bound" if row["probability_of_codes"] == "bound" else ""
            line += f"  bits/dim {codes:.4f} + {images:.4f} = {row['bits_per_dim']:.4f}{end}"
        yield line


def headline(rows: list[Row]) -> str:
    told = {row["model"]: row for row in rows if "bits_per_dim" in row}
    bits = ", ".join(f"{model} {row['bits_per_dim']:.3f}" for model, row in told.items())
    return f"{bits} bits/dim, codes and images together, told the class"
