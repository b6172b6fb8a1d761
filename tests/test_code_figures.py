"""The figures of codes, from untrained or tiny runs; and the split that a reconstruction's numbers are named for."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metrics.metric import Evaluation
from metrics.reconstruction_error import ReconstructionError
from models.autoencoder import ConvDecoder, ConvEncoder
from models.quantize import Quantizer
from reproductions import codebook_usage, rate_distortion, runs, vq_reconstructions
from reproductions.reproduction import in_table
from training.cli import load_experiment
from training.trained import Trained

HALVES: Any = {
    "encoder": ConvEncoder(width=4, depth=0, reduction=2),
    "decoder": ConvDecoder(width=4, depth=0, reduction=2),
}


def untrained(experiment):
    """With networks that are quick to compile, and the bottleneck that it has."""
    model = replace(experiment.resolved_model(), **HALVES)
    variables = jax.jit(model.init)(jax.random.key(0), {"x": jnp.asarray(experiment.data.arrays("train", 64)["x"])})
    return Trained(experiment, model, variables, 0)


def looked_at(run):
    return Evaluation(run.model, run.variables, run.experiment.data, lambda n: np.zeros((n, 1)))


def reconstructed(run, x):
    return jax.jit(lambda x: run.model.reconstruct(run.variables, x).image)(jnp.asarray(x))


class Untrained:
    """In place of `made` and `trained`."""

    def __init__(self, folder):
        self.folder, self.runs = folder, {}

    def made(self, name, folder=None, **changes):
        run = untrained(replace(load_experiment(name), **changes))
        folder = self.folder / (folder or Path(name)).name
        assert folder not in self.runs  # or one run would be read for another
        summary = {"seconds": 1.0}
        for metric in run.experiment.metrics:
            summary |= metric(looked_at(run))
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary))
        self.runs[folder] = run
        return folder

    def read(self, folder):
        return self.runs[folder]


def drawn(module, rows):
    """The figure as it is printed, at its own size; nothing that is written on it leaves it."""
    figure = Figure(figsize=module.SIZE, dpi=110, layout="constrained")
    module.draw(rows, figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    inside = figure.get_tightbbox(canvas.get_renderer())
    assert min(inside.x0, inside.y0) >= 0.0
    assert inside.x1 <= module.SIZE[0]
    assert inside.y1 <= module.SIZE[1]
    for legend in figure.legends:
        boxes: Any = [axes.get_tightbbox() for axes in figure.axes]
        assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    return figure


def test_numbers_of_the_training_split_say_so():
    run = untrained(load_experiment("vqvae_digits"))
    test, train = (ReconstructionError(examples=20, split=split)(looked_at(run)) for split in ("test", "train"))
    assert set(train) == {f"{name}_of_train" for name in test}
    x = run.experiment.data.arrays("train", 20)["x"]
    expected = np.sum((x - reconstructed(run, x)) ** 2) / np.sum((x - x.mean()) ** 2)
    assert train["normalised_error_of_train"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("scale", vq_reconstructions.SCALES)
def test_the_rate_is_equal(scale):
    own: dict[str, Any] = {
        kind: load_experiment(name).model for kind, name in vq_reconstructions.EXPERIMENTS[scale].items()
    }
    base = own["ema"]
    kinds: dict[str, Any] = vq_reconstructions.others(base.quantizer) | {
        kind: model.quantizer for kind, model in own.items()
    }
    assert set(kinds) == set(vq_reconstructions.NAMES)
    rates = {q.codes**q.per_place for q in kinds.values() if isinstance(q, Quantizer)}
    assert rates == {base.quantizer.size}
    assert kinds["ae"].outputs == kinds["vae"].outputs == base.quantizer.width
    assert all(replace(model, quantizer=base.quantizer) == base for model in own.values())


@pytest.mark.thorough
def test_reconstructions(monkeypatch, tmp_path):
    stand_in, names = Untrained(tmp_path), vq_reconstructions.NAMES
    monkeypatch.setattr(vq_reconstructions, "NAMES", {kind: names[kind] for kind in ("ae", "vae", "ema", "rvq")})
    monkeypatch.setattr(vq_reconstructions, "made", stand_in.made)
    monkeypatch.setattr(vq_reconstructions, "run_of", lambda cut: stand_in.made(cut.experiment))
    monkeypatch.setattr(vq_reconstructions, "read", stand_in.read)
    rows = list(vq_reconstructions.rows("tiny", None))
    assert [folder.name for folder in stand_in.runs] == [
        f"vqvae_digits{end}" for end in ("_ae_cut", "_vae_cut", "", "_rvq_cut")
    ]
    np.testing.assert_allclose([row["rate"] for row in rows if "codes" in row], 2 * [16 * 6 / 64])
    assert "rate" not in rows[0]
    assert rows[1]["rate"] > 0.0
    assert not set(in_table(rows[0])) & {"originals", "images"}
    test = load_experiment("vqvae_digits").data.arrays("test", 360)
    for label, image in enumerate(rows[0]["originals"]):
        where = np.flatnonzero((test["x"] == image[None]).all(axis=(1, 2, 3)))
        assert label in test["label"][where]
    last = list(stand_in.runs.values())[-1]
    np.testing.assert_allclose(rows[-1]["images"], reconstructed(last, rows[-1]["originals"]), atol=1e-5)
    rows += rows[2:]  # as many as there are
    labels = [text.get_text() for text in drawn(vq_reconstructions, rows).axes[0].get_yticklabels()]
    assert len(labels) == 1 + len(rows)
    assert f"error {rows[0]['normalised_error']:.4f}" in labels[1]
    assert len({len(line) for line in vq_reconstructions.summary(rows)}) == 1  # columns under their heads
    assert "residual VQ" in vq_reconstructions.headline(rows)


@pytest.mark.thorough
def test_usage_over_training(monkeypatch, tmp_path):
    def short(name):
        experiment: Any = load_experiment(name, tiny=True)
        model, mesh = replace(experiment.model, **HALVES), replace(experiment.mesh, data=1)
        return replace(experiment, model=model, mesh=mesh)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "load_experiment", short)
    monkeypatch.setattr(codebook_usage, "load_experiment", short)
    monkeypatch.setattr(codebook_usage, "WHERE", {"tiny": ("vqvae_digits", 8, 4)})
    monkeypatch.setattr(codebook_usage, "EVERY", {"tiny": 2})
    variants = codebook_usage.VARIANTS
    monkeypatch.setattr(codebook_usage, "VARIANTS", {"data_restarts": variants["data_restarts"]})
    (row,) = codebook_usage.rows("tiny", None)
    np.testing.assert_array_equal(row["steps"], (2, 4))  # and not the measurement at the end
    assert np.all((row["usage_curve"] > 0.0) & (row["usage_curve"] <= 1.0))
    assert np.all((row["perplexity_curve"] >= 1.0) & (row["perplexity_curve"] <= 8.0))
    rows = [row | {"variant": name, "start": c.start, "rule": codebook_usage.rule(c)} for name, c in variants.items()]
    for axes in drawn(codebook_usage, rows).axes:
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(looks) == len(variants)  # no two alike
    assert len({len(line) for line in list(codebook_usage.summary(rows))[1:]}) == 1
    assert codebook_usage.headline(rows).startswith("of 8 codes that begin at random ")


@pytest.mark.thorough
def test_rate_and_distortion(monkeypatch, tmp_path):
    for name, value in {"SIZES": (4,), "LEVELS": ((8, 6, 5),), "DEPTHS": (3,)}.items():
        monkeypatch.setattr(rate_distortion, name, {"tiny": value})
    monkeypatch.setattr(rate_distortion, "made", Untrained(tmp_path).made)
    rows = list(rate_distortion.rows("tiny", None))
    # T·log₂ K; three levels of 16 say as much as one codebook of 16³.
    np.testing.assert_allclose([row["bits"] for row in rows], [32.0, 16 * math.log2(240), 16 * 12.0])
    for row in rows:
        assert 0.0 <= row["bits_of_entropy"] <= row["bits"]
        assert row["normalised_error"] != row["normalised_error_of_train"]
    axes = drawn(rate_distortion, rows).axes[0]
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == 2 * 3
    assert len({len(line) for line in rate_distortion.summary(rows)}) == 1
    assert "residual VQ, levels of 16" in rate_distortion.headline(rows)
