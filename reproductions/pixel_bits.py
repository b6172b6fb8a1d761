"""Held-out bits/dim of digits as sequences of pixels: an LSTM and a transformer beside a histogram and PNG.

The histogram is of all pixels of the training digits; that of each place by itself is beside it. PNG has all held-out
digits as one strip, so that its header is paid once, each level a byte, as small as Pillow makes it. The models are
told each digit's class, which cannot be worth more than log₂(10)/64 = 0.052 bits/dim.
"""

import io
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from data.image_tokens import ImageTokens
from metrics.metric import Evaluation
from metrics.token_likelihood import TokenLikelihood
from reproductions.reproduction import Cut, Row, Source, Trained, run_of
from reproductions.reproduction import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Pixel Recurrent Neural Networks", arxiv="1601.06759", equation="eq. 1: one pixel after another, bits/dim"
)
RUNS: dict[str, tuple[str | Cut, ...]] = {
    "tiny": (Cut("pixel_lstm", steps=60), Cut("pixel_transformer", steps=60)),
    "small": ("pixel_lstm", "pixel_transformer"),
}
SIZE = (8, 3.2)


def baselines() -> Iterator[Row]:
    data = ImageTokens()
    train, test = (data.arrays(split, 10_000)["x"] for split in ("train", "test"))
    counts = np.bincount(train.reshape(-1), minlength=data.vocabulary) + 1.0  # of a level never seen, one
    bits = -np.log2(counts / counts.sum())
    yield {"model": "histogram of all pixels", "bits_per_dim": float(bits[test].mean())}
    levels = np.arange(data.vocabulary)[:, None, None]
    places = (train[None] == levels).sum(axis=1) + 1.0
    bits = -np.log2(places / places.sum(axis=0))
    found = np.take_along_axis(bits, test, axis=0)
    yield {"model": "histogram of each place", "bits_per_dim": float(found.mean())}
    strip = io.BytesIO()
    Image.fromarray(test.reshape(-1, data.images.shape[1]).astype(np.uint8)).save(strip, "PNG", optimize=True)
    yield {"model": "PNG of all as one strip", "bits_per_dim": 8.0 * strip.getbuffer().nbytes / test.size}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    yield from baselines()
    for wanted in RUNS[scale]:
        run = read(run_of(wanted))
        evaluation = Evaluation(run.model, run.variables, run.experiment.data, lambda n: np.zeros((n, 1)))
        found = TokenLikelihood(examples=10_000)(evaluation)
        name = wanted.experiment if isinstance(wanted, Cut) else wanted
        yield {"model": name, "bits_per_dim": found["bits_per_dim"], "stderr": found["bits_per_dim_stderr"]}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    names, values = [row["model"] for row in rows], [row["bits_per_dim"] for row in rows]
    errors = [row.get("stderr", 0.0) for row in rows]
    bars = axes.barh(names, values, xerr=errors, color=["C0" if name.startswith("pixel_") else "C7" for name in names])
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="held-out bits/dim, 360 digits", xlim=(0, 1.15 * max(values)))


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        error = f" ± {row['stderr']:.3f}" if "stderr" in row else ""
        yield f"{row['model']:26}{row['bits_per_dim']:.3f}{error} bits/dim"


def headline(rows: list[Row]) -> str:
    return ", ".join(f"{row['model']} {row['bits_per_dim']:.3f}" for row in rows) + " bits/dim of held-out digits"
