"""Held-out bits/dim of digits: two flows beside a full-covariance Gaussian and a mixture of diagonal ones.

All are fitted to scikit-learn's training digits, dequantised uniformly, and measured on the same held-out ones, so that
each figure bounds the discrete data's from above. The mixture's number of components is the best of several on the
held-out digits themselves, which favours it; Glow is told each digit's class, which cannot be worth more than
log₂(10)/64 = 0.052 bits/dim.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture

from data.digits import Digits
from metrics.examples import mean_and_error
from metrics.features import flat
from metrics.flow_likelihood import FlowLikelihood
from metrics.likelihood import bits_per_dim
from metrics.metric import Evaluation
from reproductions.reproduction import Row, Trained, made
from reproductions.reproduction import trained as read

SCALES = {"tiny": None}
FLOWS = ("glow_digits", "realnvp_digits")
COMPONENTS = (10, 20, 40, 80, 160)
DRAWS = 8  # dequantisations of the training digits; the baselines see them all at once
SIZE = (8, 3.6)


def baselines() -> Iterator[Row]:
    data, rng = Digits(), np.random.default_rng(0)
    train, test = (flat(data.arrays(split, 2000)["x"]) for split in ("train", "test"))
    width, dims = data.bin_width, train.shape[1]
    filled = lambda x: x + width * (rng.random(x.shape) - 0.5)  # noqa: E731
    train, test = np.concatenate([filled(train) for _ in range(DRAWS)]), filled(test)

    def bits(log_prob: np.ndarray) -> Row:
        values = mean_and_error("bits_per_dim", bits_per_dim(log_prob, dims, width)).values()
        return dict(zip(("bits_per_dim", "stderr"), values, strict=True))

    one = GaussianMixture(1, covariance_type="full", random_state=0).fit(train)
    yield {"model": "Gaussian, full covariance", **bits(one.score_samples(test))}
    fits = [GaussianMixture(k, covariance_type="diag", random_state=0, max_iter=300).fit(train) for k in COMPONENTS]
    k, scores = min(
        ((k, bits(fit.score_samples(test))) for k, fit in zip(COMPONENTS, fits, strict=True)),
        key=lambda item: item[1]["bits_per_dim"],
    )
    yield {"model": f"{k} diagonal Gaussians", **scores}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    yield from baselines()
    for name in FLOWS:
        run = read(made(name))
        evaluation = Evaluation(run.model, run.variables, run.experiment.data, lambda n: np.zeros((n, 1)))
        bits, error, *_ = FlowLikelihood(examples=360)(evaluation).values()
        told = ", told the class" if run.model.num_classes else ""  # type: ignore[attr-defined]
        yield {"model": name + told, "bits_per_dim": bits, "stderr": error}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    names, values = [row["model"] for row in rows], [row["bits_per_dim"] for row in rows]
    colours = ["C0" if name.startswith(FLOWS) else "C7" for name in names]
    bars = axes.barh(names, values, xerr=[row["stderr"] for row in rows], color=colours)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="held-out bits/dim, 360 digits", xlim=(0, 1.15 * max(values)))


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield f"{row['model']:28}{row['bits_per_dim']:.3f} ± {row['stderr']:.3f} bits/dim"
