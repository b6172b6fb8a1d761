"""Reconstructions of an autoencoder, a VAE and four quantizers, beside the originals, at an equal rate of the codes.

All have the same encoder, decoder, observation, steps and batch, those of vqvae_digits or vqvae_mnist; the bottleneck
alone is another: VQ by gradient and by averages (1711.00937), FSQ (2309.15505), residual VQ (2107.03312). The rate of
codes is T·log₂ K, that of the VAE its mean KL divergence, and the autoencoder's numbers have none; what the VAE shows
is of its posterior's mean. Perplexity and usage are of K codes, which for residual VQ is one level's, all levels in one
histogram. Seconds are of training with compilation, on a machine as busy as it was.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from data.dataset import Dataset
from metrics.reconstruction_error import ReconstructionError
from models.bottlenecks import NormalPosterior, Plain
from models.codebook import EMA, VQ
from models.fsq import FSQ
from models.quantize import Bottleneck
from models.residual_vq import ResidualVQ
from reproductions.code_priors import FIRST
from reproductions.reproduction import Row, Source
from reproductions.runs import UNSEEN, in_runs, made, run_of, shortened
from samplers.reconstruct import Reconstruct
from training.cli import load_experiment
from training.picture import grid
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None, "mnist": None}
SOURCE = Source(
    paper="Neural Discrete Representation Learning; Finite Scalar Quantization; SoundStream",
    arxiv="1711.00937, 2309.15505, 2107.03312",
    equation="eq. 3 and app. A.1; §3.1; alg. 1",
)
EXPERIMENTS = {  # those that stand in the folder; the others are the first with another bottleneck
    "tiny": {"ema": "vqvae_digits"},
    "small": {"ema": "vqvae_digits"},
    "mnist": {"ema": "vqvae_mnist", "fsq": "fsq_mnist", "rvq": "rvq_mnist"},
}
CUT: Any = FIRST["tiny"]  # of the training of each at tiny, the first's run being that of the priors' figures
NAMES = {
    "ae": "autoencoder",
    "vae": "VAE",
    "vq": "VQ, by gradient",
    "ema": "VQ, by averages",
    "fsq": "FSQ",
    "rvq": "residual VQ",
}
SIZE = (8.2, 5.0)


def others(codebook: EMA) -> dict[str, Bottleneck]:
    """What takes the place of a codebook; the last two where it has 64 codes."""
    size, width = codebook.size, codebook.width
    return {
        "ae": Plain(width=width),
        "vae": NormalPosterior(width=width),
        "vq": VQ(size=size, width=width, start=codebook.start),
        "fsq": FSQ(levels=(8, 8)),
        "rvq": ResidualVQ(codebook=replace(codebook, size=8), depth=2),
    }


def run(scale: str, kind: str) -> Path:
    """The folder of a run; trained, if it is not there."""
    own = EXPERIMENTS[scale]
    if kind in own:
        return run_of(CUT if scale == "tiny" else own[kind])
    base = own["ema"]
    model: Any = load_experiment(base).model
    changes: dict[str, Any] = {**shortened(base, CUT.steps), **UNSEEN} if scale == "tiny" else {}
    changes["model"] = replace(model, quantizer=others(model.quantizer)[kind])
    return made(base, in_runs(f"{base}_{kind}", scale), **changes)


def one_of_each(data: Dataset) -> Float[np.ndarray, "classes h w c"]:
    """The first test image of each class."""
    test = data.arrays("test", 1000)
    return test["x"][[np.flatnonzero(test["label"] == label)[0] for label in range(data.num_classes)]]


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for kind, name in NAMES.items():
        folder = run(scale, kind)
        this = read(folder)
        data = this.experiment.data
        found = ReconstructionError()(this.evaluation())
        row: Row = {"model": name, "normalised_error": found["normalised_error"]}
        row |= {column: value for column, value in found.items() if column.startswith("bits_per_dim_of_reconstruction")}
        for rate in ("bits_per_dim_of_equal_codes", "bits_per_dim_of_latents"):
            row |= {"rate": found[rate]} if rate in found else {}
        if "usage" in found:
            model: Any = this.model
            row |= {"codes": model.codes, "perplexity": found["perplexity"], "usage": found["usage"]}
        row["seconds"] = json.loads((folder / "summary.json").read_text())["seconds"]
        originals = one_of_each(data)
        drawn, _ = this.draw(Reconstruct(), len(originals), {"image": originals})
        yield row | {"originals": originals, "images": drawn.x}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    lines = [rows[0]["originals"], *(row["images"] for row in rows)]
    sheet = grid(np.concatenate(lines), columns=len(lines[0]))
    axes.imshow(sheet)
    labels = ["held-out images"]
    for row in rows:
        rate = f"{row['rate']:.2f} bits/dim" if "rate" in row else "no rate"
        labels.append(f"{row['model']}, {rate}\nerror {row['normalised_error']:.4f}")
    axes.set_yticks((np.arange(len(lines)) + 0.5) * len(sheet) / len(lines), labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("error: Σ(x − x̂)²/Σ(x − x̄)² over the whole test split", fontsize=10)


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':17}{'error':>8}{'bits/dim | code':>22}{'rate':>7}{'perplexity':>20}{'usage':>8}{'seconds':>9}"
    for row in rows:
        bits = f"{row['bits_per_dim_of_reconstruction']:.3f} ± {row['bits_per_dim_of_reconstruction_stderr']:.3f}"
        rate = f"{row['rate']:.3f}" if "rate" in row else "–"
        perplexity, usage = "–", "–"
        if "codes" in row:
            perplexity, usage = f"{row['perplexity']:.1f} of {row['codes']}", f"{100 * row['usage']:.0f} %"
        yield (
            f"{row['model']:17}{row['normalised_error']:8.4f}{bits:>22}{rate:>7}{perplexity:>20}{usage:>8}"
            f"{row['seconds']:9.0f}"
        )


def headline(rows: list[Row]) -> str:
    told = (f"{row['model']} {row['normalised_error']:.3f}" for row in rows)
    return f"normalised error: {', '.join(told)}"
