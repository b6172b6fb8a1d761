"""The table of likelihoods: rows without learning against other ways to compute them; rows that are trained."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from data.arrays import ArraySource
from data.dataset import Dataset
from models.trace import Exact
from reproductions import baselines, bits_per_dim, densities
from tests.scripts import here
from training.cli import load_experiment
from training.experiment import Experiment

LEVELS, SIDE = 5, 2


@dataclass(frozen=True, kw_only=True)
class Small(Dataset):
    """2×2 images of 5 levels; one pixel of the training split never changes."""

    @property
    def shape(self):
        return (SIDE, SIDE, 1)

    @property
    def bin_width(self):
        return 2.0 / (LEVELS - 1)

    def source(self, split):
        rng = np.random.default_rng(0 if split == "train" else 1)
        levels = rng.binomial(LEVELS - 1, 0.3, (200 if split == "train" else 50, SIDE, SIDE, 1))
        levels[:, 1, 1] = np.maximum(levels[:, 0, 0] - 1, 0)
        if split == "train":
            levels[:, 0, 1] = 2
        return ArraySource(levels, np.zeros(len(levels)), lambda x: x.astype(np.float32) / 2.0 - 1.0)


@pytest.fixture(scope="module")
def small():
    levels = {split: np.round(2 * (Small().arrays(split, 999)["x"].reshape(-1, 4) + 1)) for split in ("train", "test")}
    return {row["model"]: row for row in baselines.baselines(Small(), 1000)}, levels["train"], levels["test"]


def test_uniform_and_a_histogram_are_what_counting_gives(small):
    rows, train, test = small
    assert rows["uniform"]["bits_per_dim"] == pytest.approx(np.log2(LEVELS))
    bits = [
        -np.log2((np.sum(train[:, d] == image[d]) + 1.0) / (len(train) + LEVELS)) for image in test for d in range(4)
    ]
    assert rows["histogram of each place"]["bits_per_dim"] == pytest.approx(np.mean(bits))


def test_gaussians_are_scipys(small):
    """The mass of a bin by differences of the distribution function, open-ended at the first and last level."""
    rows, train, test = small
    mean, std = train.mean(axis=0), np.sqrt(train.var(axis=0) + 1 / 12)
    edges = np.concatenate([[-np.inf], np.arange(LEVELS - 1) + 0.5, [np.inf]])
    below = stats.norm.cdf((edges[:, None] - mean) / std)
    masses = np.take_along_axis(below[1:] - below[:-1], test.astype(int), axis=0)
    assert rows["Gaussian of each place"]["bits_per_dim"] == pytest.approx(-np.log2(masses).mean(), rel=1e-5)
    filled = test + np.random.default_rng(0).random(test.shape) - 0.5
    by_scipy = stats.norm.logpdf(filled, mean, std).sum(axis=1) / (-4 * np.log(2))
    assert rows["the same, dequantised"]["bits_per_dim"] == pytest.approx(by_scipy.mean(), rel=1e-5)
    covariance = np.cov(train, rowvar=False) + np.eye(4) / 12
    by_scipy = stats.multivariate_normal(mean, covariance).logpdf(filled) / (-4 * np.log(2))
    assert rows["Gaussian, full covariance"]["bits_per_dim"] == pytest.approx(by_scipy.mean(), rel=1e-5)
    assert rows["Gaussian, full covariance"]["stderr"] == pytest.approx(by_scipy.std(ddof=1) / np.sqrt(50), rel=1e-4)


def test_a_bound_is_above_the_exact_value_where_both_exist(small):
    """By the same Gaussians: more than the noise of one draw an image could make it."""
    rows, *_ = small
    exact, bound = rows["Gaussian of each place"], rows["the same, dequantised"]
    assert bound["bits_per_dim"] > exact["bits_per_dim"]


def test_pngs_bytes_hold_the_images(small):
    rows, _, test = small
    strip = io.BytesIO()
    Image.fromarray(test.reshape(-1, SIDE).astype(np.uint8)).save(strip, "PNG", optimize=True)
    np.testing.assert_array_equal(np.asarray(Image.open(strip)).reshape(test.shape), test)
    assert rows["PNG of all as one strip"]["bits_per_dim"] == 8 * len(strip.getvalue()) / test.size


@pytest.mark.parametrize("data", densities.DATA)
def test_no_row_is_told_a_class(data, tmp_path, monkeypatch):
    """Nor is any trained on other images than the table's, and each has a folder of its own or shares a whole run."""
    monkeypatch.chdir(tmp_path)
    runs: dict[Path, Experiment] = {}
    rows = densities.densities(data)
    for row in rows:
        assert not getattr(row.experiment.model, "num_classes", 0), row.name
        assert densities.without_classes(row.experiment.model) == row.experiment.model
        assert runs.setdefault(row.folder, row.experiment) == row.experiment
    assert len({row.name for row in rows}) == len(rows)
    told = load_experiment("glow_digits").model
    assert densities.without_classes(told) != told


def test_a_continuous_flow_is_measured_by_an_adaptive_solve():
    flow = load_experiment("ffjord_mnist").model
    adaptive = densities.solved(flow, Exact())
    assert "Adaptive" in repr(adaptive)
    assert "FixedStep" not in repr(adaptive)
    glow = load_experiment("glow_digits").model
    assert densities.solved(glow, Exact()) == glow


@pytest.fixture
def two(monkeypatch):
    """A table of two models, in their experiments' tiny forms."""
    whole = {row.name: row for row in densities.densities("digits")}

    def cut(data, *_):
        found = []
        for name, experiment in (("nice", "nice_digits"), ("lstm", "pixel_lstm")):
            tiny = densities.alone(load_experiment(experiment, tiny=True))
            found.append(replace(whole[name], experiment=tiny, metric=replace(whole[name].metric, examples=20)))
        return tuple(found)

    monkeypatch.setattr(bits_per_dim, "densities", cut)


@pytest.mark.thorough
def test_rows_are_trained_once_measured_once_and_drawn(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = here("evaluate.py", "--table", "bits_per_dim", "--data", "digits", "--rows", "nice")
    assert code == 0, err
    assert "| pixel LSTM | `python evaluate.py --table bits_per_dim --data digits --rows lstm` | exact |" in out
    [line] = [line for line in out.splitlines() if line.startswith("| NICE |")]
    assert " ± " in line
    assert (tmp_path / "figures" / "bits_per_dim_digits.png").stat().st_size > 10_000
    rows = list(bits_per_dim.table("digits", examples=80))
    assert {"NICE", "pixel LSTM", "training images"} < {row["model"] for row in rows}
    lstm = rows[-1]
    assert lstm["calls"] == 64  # a token each
    assert 3.0 < lstm["bits_per_dim"] < 5.0  # four steps of training: near log2(17) = 4.09

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(bits_per_dim.Trained, "draw", fail)
    assert list(bits_per_dim.table("digits", examples=80)) == rows
    figure = Figure()
    bits_per_dim.draw(rows, figure)
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "digits", "--rows", "glwo"], "glow"),
        (["--rows", "nice", "glwo", "--data", "digits"], "glow"),
        (["--data", "cifar10"], "digits or mnist"),
        ([], "digits or mnist"),
        (["--data", "digits", "--step", "3"], "--step 3"),
    ],
)
def test_mistakes_are_answered(arguments, said):
    code, _, err = here("evaluate.py", "--table", "bits_per_dim", *arguments)
    assert code == 2
    assert said in err


def test_another_table_is_named():
    code, _, err = here("evaluate.py", "--table", "fid")
    assert code == 2
    assert "bits_per_dim" in err


def test_samples_that_are_not_finite_are_counted():
    look = bits_per_dim.Look.__new__(bits_per_dim.Look)
    rng = np.random.default_rng(0)
    look.test, features = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    features[4] = np.nan
    found = look(features)
    assert found["not_finite"] == 1
    assert np.isfinite(list(found.values())).all()
