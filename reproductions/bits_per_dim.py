"""One table of likelihoods: every family's bits/dim of the same held-out images, and what a sample costs.

Rows are those of reproductions/densities.py, which says what is exact, what a bound and what an estimate; beside them
stand those of reproductions/baselines.py, which need no learning, as a check of every convention.

The first 1,000 test images, or all, are measured; samples are 1,000, clipped to [−1, 1] as a picture is; the Fréchet
distance is to the test split, precision and recall (metrics/manifold.py) are of as many samples as test images, both in
the features of metrics/classifier.py. Seconds a sample are of 500 at once, without compiling. Calls of FFJORD are those
of the density's own solve, the mean over images.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from data.dataset import Dataset
from metrics.frechet import frechet_distance
from metrics.manifold import precision_recall
from models.trace import Exact, Hutchinson
from reproductions.baselines import NO_LEARNING, baselines
from reproductions.densities import EXAMPLES, Density, densities, solved
from reproductions.judge import judge_of
from reproductions.record import hardware
from reproductions.reproduction import Row, Source
from reproductions.runs import completed, cost
from training import config
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None, "mnist": None}
SOURCE = Source(
    paper="A note on the evaluation of generative models",
    arxiv="1511.01844",
    equation="eq. 4: what a density of dequantised images says of the images",
)
DATA = {"tiny": "digits", "small": "digits", "mnist": "mnist"}
TINY_ROWS = ("nice", "glow", "ddpm_vlb", "ddpm_ode", "vqvae", "lstm", "transformer")
TINY_STEPS, TINY_EXAMPLES = 20, 80
NAMES = ("bits_per_dim", "vlb_bits_per_dim", "bits_per_dim_bound")  # of the number, by metric
SIZE = (13, 5.4)


class Look:
    """How samples look to a classifier of real images."""

    def __init__(self, images: Dataset) -> None:
        self.features = judge_of(images).features
        self.train, self.test = (self.features(images.arrays(split, 10_000)["x"]) for split in ("train", "test"))

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Row:
        whole = features[np.isfinite(features).all(axis=1)]
        n = min(len(features), len(self.test))
        precision, recall = precision_recall(self.test[:n], features[:n])
        found: Row = {"frechet_classifier": frechet_distance(whole, self.test), "precision": precision}
        return found | {"recall": recall, "not_finite": len(features) - len(whole)}

    def of_training_images(self, n: int) -> Row:
        return {"model": "training images", "family": NO_LEARNING, **self(self.train[:n])}


def ready(density: Density, data: str) -> Trained:
    """Its run, trained to the end if it is not; a continuous flow's by an adaptive solve from here on."""
    for folder, experiment in density.needs:
        completed(experiment, folder)
    run = read(completed(density.experiment, density.folder))
    return replace(run, model=solved(run.model, Exact() if data == "digits" else Hutchinson()))


def measured(density: Density, data: str, look: Look, samples: int) -> Row:
    """What is measured once: kept beside the run, with the digest of its parameters, for the next time."""
    run = ready(density, data)
    costs = [cost(folder, read(folder)) for folder in (density.folder, *(path for path, _ in density.needs))]
    digest = json.loads((density.folder / "summary.json").read_text())["state_digest"]
    what = config.encode((density.metric, density.sampler, samples))
    of = json.loads(json.dumps({"digest": digest, "what": what}))
    if density.kept.is_file() and (old := json.loads(density.kept.read_text()))["of"] == of:
        return old["row"]
    found = density.metric(run.evaluation())
    number = next(name for name in NAMES if name in found)
    drawn, seconds = run.draw(density.sampler, samples)
    pictures = np.clip(run.experiment.data.shown(drawn.x), -1.0, 1.0)
    row: Row = {
        **{"model": density.title, "family": density.name, "kind": density.kind},
        **{"bits_per_dim": found[number], "stderr": found[f"{number}_stderr"]},
        "parameters": sum(one["parameters"] for one in costs),
        "training_seconds": sum(one["training_seconds"] for one in costs),
        "hardware": hardware(),
        "calls": calls(density, run, found, drawn.nfe),
        "seconds_a_sample": seconds / samples,
        **look(look.features(pictures)),
    }
    config.write_whole(density.kept, json.dumps({"of": of, "row": row}, indent=2) + "\n")
    return row


def calls(density: Density, run: Trained, found: dict[str, float], nfe: Any) -> float:
    """Of the network, one after the other, for a sample; of a model of tokens as many as tokens."""
    if density.calls is not None:
        return density.calls
    if nfe is not None or "nfe" in found:
        return round(float(found["nfe"] if nfe is None else np.mean(nfe)), 1)
    return density.sampler.network_calls() or math.prod(run.experiment.data.shape)


def table(data: str, only: tuple[str, ...] = (), steps: int = 0, examples: int = EXAMPLES) -> Iterator[Row]:
    """All rows; of those that are not among `only`, where some are named, what has been measured before.

    Args:
      only: names of rows to train and measure; empty: all.
      steps: as for `densities`.
      examples: as for `densities`, and as many samples.
    """
    all_of_them = densities(data, steps, examples)
    images = all_of_them[0].experiment.data
    yield from baselines(images, examples)
    look = Look(images)
    yield look.of_training_images(examples)
    for density in all_of_them:
        if not only or density.name in only or density.kept.is_file():
            yield measured(density, data, look, examples)
        else:
            missing = f"python evaluate.py --table bits_per_dim --data {data} --rows {density.name}"
            yield {"model": density.title, "family": density.name, "kind": density.kind, "missing": missing}


def told(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows, each printed as it comes: a row may take an hour."""
    for row in rows:
        number = f"{row['bits_per_dim']:.4f} bits/dim" if "bits_per_dim" in row else row.get("missing", "")
        print(f"{row['model']:28}{number}", flush=True)
        yield row


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    if scale == "tiny":
        yield from table(DATA[scale], TINY_ROWS, TINY_STEPS, TINY_EXAMPLES)
    else:
        yield from table(DATA[scale])


def headline(rows: list[Row]) -> str:
    best = sorted((row for row in rows if "seconds_a_sample" in row), key=lambda row: row["bits_per_dim"])[:3]
    return "the three best: " + ", ".join(f"{row['model']} {row['bits_per_dim']:.3f} ({row['kind']})" for row in best)


def draw(rows: list[Row], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    known = [row for row in rows if "bits_per_dim" in row]
    colours = {"exact": "C0", "bound": "C1", "estimate": "C2"}
    names, values = [row["model"] for row in known], [row["bits_per_dim"] for row in known]
    errors = [row.get("stderr", 0.0) for row in known]
    bars = left.barh(names, values, xerr=errors, color=[colours[row["kind"]] for row in known])
    for bar, row in zip(bars, known, strict=True):
        bar.set_alpha(0.45 if row["family"] == NO_LEARNING else 1.0)
    left.bar_label(bars, [f"{value:.3f}" for value in values], padding=4, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="bits/dim of held-out images", xlim=(0, 1.16 * max(values)))
    handles = [left.barh([names[0]], [0.0], color=colour, label=kind) for kind, colour in colours.items()]
    left.legend(handles=handles, loc="lower right", fontsize=8)
    points = [row for row in known if "seconds_a_sample" in row]
    for i, row in enumerate(points):
        at, look = 1e3 * row["seconds_a_sample"], {"marker": "osv^DPX*<>hp8d"[i % 14], "color": f"C{i % 10}"}
        right.scatter(at, row["bits_per_dim"], s=52, label=row["model"], **look)
    right.set(xscale="log", xlabel="ms a sample, 500 at once", ylabel="bits/dim of held-out images")
    right.grid(True, alpha=0.3)
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)


def summary(rows: list[Row]) -> Iterator[str]:
    """The table in Markdown."""
    yield "| model | bits/dim | | parameters | training | calls a sample | ms a sample | Fréchet | precision | recall |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        if "missing" in row:
            yield f"| {row['model']} | `{row['missing']}` | {row['kind']} | | | | | | | |"
            continue
        bits = f"{row['bits_per_dim']:.3f}" if "bits_per_dim" in row else ""
        bits += f" ± {row['stderr']:.3f}" if row.get("stderr") else ""
        cells = [row["model"], bits, row.get("kind", "")]
        cells += [shown(row, "parameters", ",d"), shown(row, "training_seconds", ".0f", " s"), shown(row, "calls", "g")]
        milliseconds = {"ms": 1e3 * row["seconds_a_sample"]} if "seconds_a_sample" in row else {}
        cells += [shown(milliseconds, "ms", ".3g"), shown(row, "frechet_classifier", ".2f")]
        cells += [shown(row, "precision", ".3f"), shown(row, "recall", ".3f")]
        yield "| " + " | ".join(cells) + " |"
    lost = [f"{row['not_finite']} of {row['model']}" for row in rows if row.get("not_finite")]
    if lost:
        yield f"Samples that are not finite, left out of the Fréchet distance: {', '.join(lost)}."


def shown(row: Row, column: str, form: str, unit: str = "") -> str:
    return f"{row[column]:{form}}{unit}" if column in row else ""
