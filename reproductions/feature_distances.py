"""An embedder as the eye that generative runs are judged by: distances in its features on MNIST.

`mnist_embedder` is trained if it is not there. In its features: one half of the test images against the other; the test
images blurred and made noisy, more and more; the test images of five classes alone; and, against the test images, 1,000
samples of every finished run in runs/ whose pictures are MNIST's, at tiny of those that it has cut short. A flow is
drawn at falling temperatures, too, which gives up variety (recall) for fidelity (precision). Beside each the Fréchet
distance in raw pixels.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from data.dataset import Dataset
from data.images import TFDS
from metrics.features import Features
from metrics.frechet import frechet_distance
from metrics.kid import kernel_distance
from metrics.manifold import density_coverage, precision_recall
from models.flows.flow import Flow
from reproductions.reproduction import Row, Source
from reproductions.runs import UNSEEN, in_runs, made, shortened
from samplers.sampler import NoSampler
from training.errors import UserError
from training.features import features_of
from training.run import Run
from training.trained import Trained, trained

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="FID; KID; Improved Precision and Recall; Density and Coverage",
    arxiv="1706.08500, 1801.01401, 1904.06991, 2002.09797",
    equation="each paper's definition, in the features of an embedder",
)
LAST = True  # it looks at what the others have trained
EMBEDDER, STEPS = "mnist_embedder", 120  # of its cut training
DATA = {"tiny": TFDS(name="mnist", test="test[:3400]"), "small": TFDS(name="mnist")}
SAMPLES = 1000
BLURS = {"tiny": (1.0, 2.0), "small": (0.5, 0.75, 1.0, 1.5, 2.0)}  # standard deviations, pixels
NOISES = {"tiny": (0.2, 0.8), "small": (0.1, 0.2, 0.4, 0.8)}  # standard deviations, on [−1, 1]
TEMPERATURES = {"tiny": (1.0, 0.7), "small": (1.0, 0.9, 0.8, 0.7, 0.5)}
SIZE = (12, 4.4)


def compared(features: Features, real: Float[np.ndarray, "n h w c"], x: Float[np.ndarray, "m h w c"]) -> Row:
    """All numbers of x against `real`, of which the first 1,000 are taken for the manifold's."""
    known, found = features(real), features(x)
    few, some = known[:SAMPLES], found[:SAMPLES]
    precision, recall = precision_recall(few, some)
    density, coverage = density_coverage(few, some)
    row: Row = {
        "frechet": frechet_distance(found, known),
        "kid": kernel_distance(few, some),
        "frechet_pixels": frechet_distance(x, real),
    }
    return row | {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def runs_of(data: Dataset, folder: Path, cut: bool) -> Iterator[Path]:
    """Finished runs, cut short or not, that draw pictures like the data's; says which are not looked at."""
    for path in sorted(folder.glob("*/summary.json")):
        if path.parent.name.endswith("_cut") != cut:
            continue
        try:
            experiment = Run(path.parent).experiment()
        except UserError as error:  # of settings that are no longer there, or of a file of one's own
            print(f"skipped {path.parent}: {str(error).partition(';')[0]}")  # without all names that there are
            continue
        if not isinstance(experiment.sampler, NoSampler) and experiment.data.pictured.shape == data.shape:
            pictured: Any = experiment.data.pictured
            if getattr(pictured, "name", "") == "mnist":
                yield path.parent


def rows(scale: str, trained_: Trained | None) -> Iterator[Row]:
    data = DATA[scale]
    changes = shortened(EMBEDDER, STEPS) | UNSEEN if scale == "tiny" else {}
    features = features_of(str(made(EMBEDDER, in_runs(EMBEDDER, scale), **changes)), data)
    print(f"features: {features.name}")
    test = data.arrays("test", 10_000)
    x, label = test["x"], test["label"]
    half = len(x) // 2
    yield {"what": "one half of the test images", "kind": "data"} | compared(features, x[half:], x[:half])
    train = data.arrays("train", SAMPLES)["x"]
    yield {"what": f"{SAMPLES} training images", "kind": "data"} | compared(features, x, train)
    yield {"what": "five classes alone", "kind": "data"} | compared(features, x[half:], x[:half][label[:half] < 5])
    noise = np.random.RandomState(0).randn(*x[:half].shape).astype(np.float32)
    for strength in BLURS[scale]:
        blurred = gaussian_filter(x[:half], (0, strength, strength, 0), mode="nearest")
        row: Row = {"what": f"blurred by {strength:g} pixels", "kind": "blur", "strength": strength}
        yield row | compared(features, x[half:], blurred)
    for strength in NOISES[scale]:
        row = {"what": f"noise of {strength:g}", "kind": "noise", "strength": strength}
        yield row | compared(features, x[half:], x[:half] + strength * noise)
    for folder in runs_of(data, Path("runs"), cut=scale == "tiny"):
        run = trained(folder)
        temperatures = TEMPERATURES[scale] if isinstance(run.model, Flow) else (1.0,)
        for temperature in temperatures:
            sampler: Any = run.experiment.sampler
            if temperature != 1.0:
                sampler = replace(sampler, temperature=temperature)
            drawn, _ = run.draw(sampler, SAMPLES)
            pictures = run.experiment.data.shown(drawn.x)
            name = folder.name + (f", temperature {temperature:g}" if len(temperatures) > 1 else "")
            row = {"what": name, "kind": "run", "strength": temperature}
            yield row | compared(features, x, pictures)


def harmed(rows: list[Row], kind: str) -> tuple[list[float], list[float]]:
    """Strengths from 0 on, and the Fréchet distances in the embedder's features: at 0, of a half to the other one."""
    some = [row for row in rows if row["kind"] == kind]
    return [0.0, *(row["strength"] for row in some)], [rows[0]["frechet"], *(row["frechet"] for row in some)]


def draw(rows: list[Row], figure: Figure) -> None:
    distance, bars, manifold = figure.subplots(1, 3)
    for kind, unit_of, colour in (("blur", "blur, pixels", "C0"), ("noise", "noise, standard deviation", "C3")):
        distance.plot(*harmed(rows, kind), "o-", color=colour, label=unit_of)
    distance.set(xlabel="strength", ylabel="Fréchet distance in the embedder's features", yscale="log")
    distance.legend()
    shown = [row for row in rows if row["kind"] in ("data", "run") and row.get("strength", 1.0) == 1.0]
    place = np.arange(len(shown))[::-1]
    bars.barh(place, [row["frechet"] for row in shown], color=["C7" if r["kind"] == "data" else "C0" for r in shown])
    bars.set_yticks(place, [row["what"].replace(", temperature 1", "") for row in shown], fontsize=7)
    bars.set(xlabel="Fréchet distance to the test images", xscale="log")
    for name in dict.fromkeys(row["what"].partition(",")[0] for row in rows if row["kind"] == "run"):
        some = [row for row in rows if row["what"].partition(",")[0] == name]
        if len(some) > 1:
            for column, style in (("precision", "o-"), ("recall", "s--")):
                manifold.plot(
                    [r["strength"] for r in some], [r[column] for r in some], style, label=f"{column}, {name}"
                )
    manifold.set(xlabel="temperature", ylabel="precision and recall", ylim=(0, 1))
    if manifold.lines:
        manifold.legend(fontsize=7)


def summary(rows: list[Row]) -> Iterator[str]:
    width = max(len(row["what"]) for row in rows)
    columns = ("frechet", "kid", "precision", "recall", "density", "coverage", "frechet_pixels")
    yield f"{'':{width}}" + "".join(f"{column:>15}" for column in columns)
    for row in rows:
        yield f"{row['what']:{width}}" + "".join(f"{row[column]:15.4g}" for column in columns)
    rises = {kind: bool(np.all(np.diff(harmed(rows, kind)[1]) > 0)) for kind in ("blur", "noise")}
    told = (f"{'rises' if always else 'does not rise'} with every step of {kind}" for kind, always in rises.items())
    yield f"the Fréchet distance in the embedder's features {' and '.join(told)}"


def headline(rows: list[Row]) -> str:
    blur, noise = (f"{harmed(rows, kind)[1][-1]:.2g}" for kind in ("blur", "noise"))
    return f"Fréchet distance {rows[0]['frechet']:.2g} between halves of the test images, {blur} blurred, {noise} noisy"
