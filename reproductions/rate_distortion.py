"""Distortion against rate on digits: codebooks of 4 to 1,024 codes, FSQ's levels, residual VQ's depths.

Every point is vqvae_digits in 800 steps (tiny: fewer points, fewer steps) with another quantizer, and with the Gaussian
likelihood, whose loss is the distortion: a logistic's decoder buys likelihood with it. Distortion is the normalised
error of the 360 held-out digits.
The rate of a digit's T codes is T·log₂ K where all are as long, and T·log₂ perplexity where a code's length is
the logarithm of how often it occurs in those same digits, wherever it stands (residual VQ's in one histogram of all
levels, which its levels apart would be below). 1,437 digits are few: what large codebooks gain on them is in the table
beside what is left of it on held-out ones.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from metrics.reconstruction_error import ReconstructionError
from models.codebook import Codebook
from models.fsq import FSQ
from models.observation import Gaussian
from models.quantize import Quantizer
from models.residual_vq import ResidualVQ
from reproductions.reproduction import Row, Source
from reproductions.runs import in_runs, made, shortened
from training.cli import load_experiment
from training.trained import Trained

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Neural Discrete Representation Learning; Finite Scalar Quantization; SoundStream",
    arxiv="1711.00937, 2309.15505, 2107.03312",
    equation="T·log₂ K bits against squared error",
)
BASE, STEPS = "vqvae_digits", {"tiny": 60, "small": 800}
SIZES = {"tiny": (4, 64, 1024), "small": (4, 16, 64, 256, 1024)}
ALL_LEVELS = ((4,), (4, 4), (8, 8), (8, 6, 5), (8, 5, 5, 5))  # products of 4, 16, 64, 240, 1,000
LEVELS = {"tiny": ALL_LEVELS[::4], "small": ALL_LEVELS}
DEPTHS, LEVEL = {"tiny": (1, 3), "small": (1, 2, 3, 4)}, 16  # of residual VQ, and codes of a level
SIZE = (8, 4.8)


def quantizers(codebook: Codebook, scale: str) -> Iterator[tuple[str, str, Quantizer]]:
    """Family, name and quantizer of each point."""
    for size in SIZES[scale]:
        yield "VQ, by averages", f"ema_{size}", replace(codebook, size=size)
    for levels in LEVELS[scale]:
        yield "FSQ", f"fsq_{'x'.join(map(str, levels))}", FSQ(levels=levels)
    for depth in DEPTHS[scale]:
        level = replace(codebook, size=LEVEL)
        yield f"residual VQ, levels of {LEVEL}", f"rvq_{LEVEL}_{depth}", ResidualVQ(codebook=level, depth=depth)


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    base = load_experiment(BASE)
    first: Any = base.model
    for family, name, quantizer in quantizers(first.quantizer, scale):
        model = replace(first, quantizer=quantizer, observation=Gaussian())
        folder = made(
            BASE,
            in_runs(f"{BASE}_rate_{name}", scale),
            model=model,
            **(shortened(BASE, STEPS[scale]) if scale == "tiny" else {"steps": STEPS[scale]}),
            metrics=(ReconstructionError(), ReconstructionError(split="train")),
            sample_every=0,
        )
        found = json.loads((folder / "summary.json").read_text())
        length = model.length(base.data.shape)
        row: Row = {"family": family, "quantizer": name, "length": length, "codes": model.codes}
        row |= {"bits": length * math.log2(model.codes), "bits_of_entropy": length * math.log2(found["perplexity"])}
        columns = ("normalised_error", "normalised_error_of_train", "perplexity", "usage")
        yield row | {column: found[column] for column in columns}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    families = dict.fromkeys(row["family"] for row in rows)
    for family, colour, marker in zip(families, ("C0", "C1", "C2"), "osD", strict=False):
        points = [row for row in rows if row["family"] == family]
        errors = [row["normalised_error"] for row in points]
        axes.plot([row["bits"] for row in points], errors, color=colour, marker=marker, label=family)
        entropy = [row["bits_of_entropy"] for row in points]
        style: Any = {"color": colour, "marker": marker, "markerfacecolor": "white", "lw": 0.8, "alpha": 0.45}
        axes.plot(entropy, errors, label="by its codes' entropy", **style)
    axes.set(xlabel="bits a digit of 8×8 pixels", ylabel="normalised error, 360 held-out digits", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", lw=0.4, alpha=0.4)
    figure.legend(loc="outside lower center", ncols=len(families))


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':17}{'codes':>10}{'bits':>7}{'entropy':>9}{'usage':>8}{'error':>9}{'of train':>10}"
    for row in rows:
        codes = f"{row['length']} x {row['codes']}"
        yield (
            f"{row['quantizer']:17}{codes:>10}{row['bits']:7.1f}{row['bits_of_entropy']:9.1f}"
            f"{100 * row['usage']:6.0f} %{row['normalised_error']:9.4f}{row['normalised_error_of_train']:10.4f}"
        )


def headline(rows: list[Row]) -> str:
    """The longest codes of each family."""
    last = {row["family"]: row for row in rows}
    told = (f"{name} {row['normalised_error']:.3f} at {row['bits']:.0f} bits" for name, row in last.items())
    return f"normalised error: {'; '.join(told)}"
