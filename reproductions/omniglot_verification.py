"""Every loss on Omniglot at one budget: verification, TAR@FAR, rank-1 and ROC on characters of other alphabets.

The `margin_omniglot_` experiments: one network, one optimiser, the same steps, three seeds (tiny: one, of some losses).
Trained on five alphabets (and the quarter turns of their characters), measured on the 106 characters of three others:
6,000 pairs in ten folds of different characters (metrics/verification.py), and each drawing's nearest among all others.
Mean and standard deviation over the seeds.
"""

import json
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from data.verification_pairs import drawn_pairs
from metrics.embeddings import Verification, embedded
from metrics.verification import cosines, roc
from reproductions.reproduction import Row, Source
from reproductions.runs import in_runs, made, shortened
from training.measure import evaluation_of
from training.trained import Trained, trained

MARGINS = (
    *("normface", "lsoftmax", "asoftmax", "amsoftmax", "arcface", "combined", "subcentre", "adaface", "magface"),
    "sphereface2",
)
LOSSES = ("softmax", *MARGINS, "center", "contrastive", "triplet", "infonce", "supcon")
SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="SphereFace; CosFace; ArcFace; and what each loss's file names",
    arxiv="1704.08063, 1801.09414, 1801.07698",
    equation="verification of pairs in ten folds, as on LFW",
    number="LFW: SphereFace 99.42 %, ArcFace 99.83 %",
)
STEPS = 80  # of a cut training
COMPARED = {"tiny": ("softmax", "normface", "arcface", "triplet", "supcon"), "small": LOSSES}
SEEDS = {"tiny": (0,), "small": (0, 1, 2)}
COLUMNS = ("verification_accuracy", "tar_at_far_0.01", "rank1", "eer")
SIZE = (11, 5)
FAR = np.logspace(-3, 0, 200)


def rows(scale: str, trained_: Trained | None) -> Iterator[Row]:
    for loss in COMPARED[scale]:
        found, tars, seconds = [], [], []
        for seed in SEEDS[scale]:
            name = f"margin_omniglot_{loss}"
            changes = shortened(name, STEPS) if scale == "tiny" else {}
            folder = made(name, in_runs(f"{name}_{seed}", scale), seed=seed, **changes)
            summary = json.loads((folder / "summary.json").read_text())
            found.append([summary[column] for column in COLUMNS])
            seconds.append(summary["seconds"])
            tars.append(tar_of(trained(folder)))
        row: Row = {"loss": loss, "seeds": len(found)}
        for column, values in zip(COLUMNS, np.asarray(found).T, strict=True):
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            row |= {column: float(values.mean()), f"{column}_std": spread}
        yield row | {"seconds": float(np.mean(seconds)), "tar": np.mean(tars, axis=0)}


def tar_of(run: Trained) -> np.ndarray:
    """True accept rate at each of FAR."""
    metric = next(metric for metric in run.experiment.metrics if isinstance(metric, Verification))
    test = run.experiment.data.arrays("test", metric.examples)
    pairs = drawn_pairs(test["label"], metric.folds, metric.per_fold, metric.seed)
    u = embedded(evaluation_of(run.model, run.variables, run.experiment.data, lambda n: np.zeros(0)), test["x"])
    far, tar, _ = roc(cosines(u[pairs.first], u[pairs.second]), pairs.same)
    return tar[np.searchsorted(far, FAR, side="right") - 1]


def draw(rows: list[Row], figure: Figure) -> None:
    curve, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
    best = sorted(rows, key=lambda row: row["verification_accuracy"], reverse=True)
    for i, row in enumerate(best):
        style = "k--" if row["loss"] == "softmax" else ("-", "--")[i // 10]
        colour = {} if row["loss"] == "softmax" else {"color": f"C{i % 10}"}
        curve.semilogx(FAR, row["tar"], style, lw=1.3, label=row["loss"], **colour)
    curve.set(xlabel="false accept rate", ylabel="true accept rate", xlim=(1e-3, 1), ylim=(0, 1))
    curve.legend(fontsize=7, ncols=2, loc="lower right")
    curve.grid(lw=0.4, alpha=0.5, which="both")
    place = np.arange(len(best))[::-1]
    for column, offset, colour in (("verification_accuracy", 0.2, "C0"), ("rank1", -0.2, "C1")):
        values, errors = ([row[column + end] for row in best] for end in ("", "_std"))
        bars.barh(place + offset, values, 0.38, xerr=errors, color=colour, label=column.replace("_", " "))
    bars.set_yticks(place, [row["loss"] for row in best], fontsize=8)
    seeds = rows[0]["seeds"]
    least = min(min(row["verification_accuracy"], row["rank1"]) for row in rows)
    spread = f", mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    bars.set(xlim=(0.5 if least >= 0.5 else 0.0, 1.0), xlabel=f"of 1{spread}")
    bars.legend(fontsize=8, loc="lower right")


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':14}{'verification':>18}{'TAR@FAR=1e-2':>18}{'rank-1':>18}{'seconds':>9}"
    for row in rows:
        numbers = "".join(f"{100 * row[column]:10.2f} ± {100 * row[f'{column}_std']:4.2f} " for column in COLUMNS[:3])
        yield f"{row['loss']:14}{numbers}{row['seconds']:9.0f}"
    plain = next(row for row in rows if row["loss"] == "softmax")
    margin = max((row for row in rows if row["loss"] in MARGINS), key=lambda row: row["verification_accuracy"])
    best = max(rows, key=lambda row: row["verification_accuracy"])
    more = margin["verification_accuracy"] - plain["verification_accuracy"]
    spread = margin["verification_accuracy_std"] + plain["verification_accuracy_std"]
    yield (
        f"the best margin, {_verified(margin)}, {'beats' if more > spread else 'does not beat'} {_verified(plain)}, "
        f"beyond the spread: {100 * more:+.2f} against {100 * spread:.2f}; the best of all losses is {_verified(best)}"
    )


def _verified(row: Row) -> str:
    return f"{row['loss']} ({100 * row['verification_accuracy']:.2f} ± {100 * row['verification_accuracy_std']:.2f} %)"


def headline(rows: list[Row]) -> str:
    best = sorted(rows, key=lambda row: row["verification_accuracy"])
    told = (f"{row['loss']} {100 * row['verification_accuracy']:.2f} %" for row in reversed(best[-3:]))
    plain = next(row["verification_accuracy"] for row in rows if row["loss"] == "softmax")
    return f"{', '.join(told)}; softmax {100 * plain:.2f} % of 6,000 pairs, Omniglot"
