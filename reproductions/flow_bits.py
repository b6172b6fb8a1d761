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
from reproductions.glow import SCALES as GLOW
from reproductions.reproduction import Cut, Row, Source, Trained, run_of
from reproductions.reproduction import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Density Estimation Using Real NVP; Glow",
    arxiv="1605.08803, 1807.03039",
    equation="eq. 7; §3.1 and §3.2; held-out bits/dim",
    number="3.49 (RealNVP) and 3.35 (Glow) bits/dim, CIFAR-10",
)
FLOWS: dict[str, tuple[str | Cut, ...]] = {
    "tiny": (GLOW["tiny"], Cut("realnvp_digits", steps=150)),
    "small": ("glow_digits", "realnvp_digits"),
}
COMPONENTS = {"tiny": (20, 80), "small": (10, 20, 40, 80, 160)}
DRAWS = {"tiny": 4, "small": 8}  # dequantisations of the training digits; the baselines see them all at once
SIZE = (8, 3.6)


def baselines(scale: str) -> Iterator[Row]:
    data, rng = Digits(), np.random.default_rng(0)
    train, test = (flat(data.arrays(split, 2000)["x"]) for split in ("train", "test"))
    width, dims = data.bin_width, train.shape[1]
    filled = lambda x: x + width * (rng.random(x.shape) - 0.5)  # noqa: E731
    train, test = np.concatenate([filled(train) for _ in range(DRAWS[scale])]), filled(test)

    def bits(log_prob: np.ndarray) -> Row:
        values = mean_and_error("bits_per_dim", bits_per_dim(log_prob, dims, width)).values()
        return dict(zip(("bits_per_dim", "stderr"), values, strict=True))

    one = GaussianMixture(1, covariance_type="full", random_state=0).fit(train)
    yield {"model": "Gaussian, full covariance", **bits(one.score_samples(test))}
    mixtures = (GaussianMixture(k, covariance_type="diag", random_state=0, max_iter=300) for k in COMPONENTS[scale])
    fits = [mixture.fit(train) for mixture in mixtures]
    k, scores = min(
        ((k, bits(fit.score_samples(test))) for k, fit in zip(COMPONENTS[scale], fits, strict=True)),
        key=lambda item: item[1]["bits_per_dim"],
    )
    yield {"model": f"{k} diagonal Gaussians", **scores}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    yield from baselines(scale)
    for wanted in FLOWS[scale]:
        run = read(run_of(wanted))
        evaluation = Evaluation(run.model, run.variables, run.experiment.data, lambda n: np.zeros((n, 1)))
        bits, error, *_ = FlowLikelihood(examples=360)(evaluation).values()
        told = ", told the class" if run.model.num_classes else ""  # type: ignore[attr-defined]
        name = wanted.experiment if isinstance(wanted, Cut) else wanted
        yield {"model": name + told, "bits_per_dim": bits, "stderr": error}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    names, values = [row["model"] for row in rows], [row["bits_per_dim"] for row in rows]
    colours = ["C0" if "_digits" in name else "C7" for name in names]
    bars = axes.barh(names, values, xerr=[row["stderr"] for row in rows], color=colours)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="held-out bits/dim, 360 digits", xlim=(0, 1.15 * max(values)))


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield f"{row['model']:28}{row['bits_per_dim']:.3f} ± {row['stderr']:.3f} bits/dim"


def headline(rows: list[Row]) -> str:
    return ", ".join(f"{row['model']} {row['bits_per_dim']:.3f}" for row in rows) + " bits/dim of held-out digits"
