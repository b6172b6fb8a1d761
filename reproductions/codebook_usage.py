"""Usage and perplexity of a codebook over training: its first codes and its rule, with and without restarts.

The first codes are uniform in ±1/K (1711.00937's), latents of the first batch, or their k-means; the codes follow the
optimiser's gradient or averages of latents (1711.00937 eq. 3 and app. A.1); restarts put a code that has fewer than a
tenth of the mean count on a latent of the batch (2005.00341 app. B.1). Curves are of training batches, means of some
at a time, and a batch bounds what they can be; the table is of the whole test split after the last step. tiny and small
are vqvae_digits with 256 codes, mnist is vqvae_mnist with its 512, all shorter than the experiment.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metrics.reconstruction_error import ReconstructionError
from models.codebook import EMA, VQ, Codebook
from reproductions.reproduction import Row, Source
from reproductions.runs import in_runs, made, shortened
from training.cli import load_experiment
from training.trained import Trained

SCALES = {"tiny": None, "small": None, "mnist": None}
SOURCE = Source(
    paper="Neural Discrete Representation Learning; Jukebox",
    arxiv="1711.00937, 2005.00341",
    equation="eq. 3 and app. A.1; app. B.1",
)
# experiment, codes, steps
WHERE = {"tiny": ("vqvae_digits", 256, 40), "small": ("vqvae_digits", 256, 600), "mnist": ("vqvae_mnist", 512, 500)}
EVERY = {"tiny": 2, "small": 10, "mnist": 10}  # steps a point of a curve
VARIANTS: dict[str, Codebook] = {
    "random_restarts": EMA(start="random", restart=0.1),
    "data_restarts": EMA(start="data", restart=0.1),
    "kmeans_restarts": EMA(start="kmeans", restart=0.1),
    "random": EMA(start="random"),
    "data": EMA(start="data"),
    "gradient_random": VQ(start="random"),
    "gradient_data": VQ(start="data"),
}
FEW = ("random_restarts", "data_restarts", "random", "gradient_random")  # at tiny
STARTS = {"random": ("random codes", "C3"), "data": ("codes from data", "C0"), "kmeans": ("k-means", "C2")}
LINES = {"averages": "--", "averages, restarts": "-", "gradient": ":"}
SIZE = (10, 4.6)


def rule(codebook: Codebook) -> str:
    """How the codes move: a key of LINES."""
    return f"averages{', restarts' if codebook.restart else ''}" if isinstance(codebook, EMA) else "gradient"


def curves(folder: Path) -> dict[str, np.ndarray]:
    """What a run has logged of its training batches."""
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in logged if "loss" in row]  # the last row is the measurement's
    columns = {"steps": "step", "usage_curve": "usage", "perplexity_curve": "perplexity"}
    return {name: np.asarray([row[column] for row in logged]) for name, column in columns.items()}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    base, size, steps = WHERE[scale]
    model: Any = load_experiment(base).model
    for variant, codebook in VARIANTS.items():
        if scale == "tiny" and variant not in FEW:
            continue
        folder = made(
            base,
            in_runs(f"{base}_usage_{variant}", scale),
            model=replace(model, quantizer=replace(codebook, size=size, width=model.quantizer.width)),
            **(shortened(base, steps) if scale == "tiny" else {"steps": steps}),
            metrics=(ReconstructionError(),),
            sample_every=0,
            log_every=EVERY[scale],
        )
        found = json.loads((folder / "summary.json").read_text())
        row: Row = {"variant": variant, "start": codebook.start, "rule": rule(codebook), "codes": size}
        row |= {column: found[column] for column in ("usage", "perplexity", "normalised_error")}
        yield row | curves(folder)


def draw(rows: list[Row], figure: Figure) -> None:
    panels: Any = figure.subplots(1, 2)
    for row in rows:
        name, colour = STARTS[row["start"]]
        for axes, curve in zip(panels, ("usage_curve", "perplexity_curve"), strict=True):
            axes.plot(row["steps"], row[curve], LINES[row["rule"]], color=colour, label=f"{row['rule']}: {name}")
    codes = rows[0]["codes"]
    panels[0].set(xlabel="training step", ylabel=f"share of {codes} codes used in a batch", ylim=(0.0, 1.03))
    panels[1].set(xlabel="training step", ylabel=f"perplexity of {codes} codes in a batch", ylim=(0.0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3)


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':17}{'usage':>8}{'perplexity':>20}{'error':>9}    of the test split"
    for row in rows:
        perplexity = f"{row['perplexity']:.1f} of {row['codes']}"
        yield f"{row['variant']:17}{100 * row['usage']:6.1f} %{perplexity:>20}{row['normalised_error']:9.4f}"


def headline(rows: list[Row]) -> str:
    used = {row["variant"]: f"{100 * row['usage']:.0f} %" for row in rows}
    codes = rows[0]["codes"]
    return (
        f"of {codes} codes that begin at random {used['random_restarts']} are in use with restarts, {used['random']} "
        f"without, {used['gradient_random']} by gradient"
    )
