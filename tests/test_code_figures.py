"""The figures of codes, from untrained or tiny runs; and the split that a reconstruction's numbers are named for."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metrics.metric import Evaluation
from metrics.reconstruction_error import ReconstructionError
from models.quantize import Quantizer
from reproductions import codebook_usage, rate_distortion, reproduction, vq_reconstructions
from reproductions.reproduction import in_table
from tests.test_reproduce import untrained
from training.cli import load_experiment


def looked_at(run):
    return Evaluation(run.model, run.variables, run.experiment.data, lambda n: np.zeros((n, 1)))


class Untrained:
    """In place of `made` and `trained`: the bottleneck that is asked for in the tiny form's networks, as it begins."""

    def __init__(self, folder):
        self.folder, self.runs = folder, {}

    def made(self, name, folder=None, **changes):
        whole, tiny = load_experiment(name), load_experiment(name, tiny=True).model
        model = replace(changes.pop("model", whole.model), encoder=tiny.encoder, decoder=tiny.decoder)
        run = untrained(replace(whole, model=model, metrics=changes.pop("metrics", ()), **changes))
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
        box = legend.get_window_extent()
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    return figure


def test_numbers_of_the_training_split_say_so():
    run = untrained(load_experiment("vqvae_digits", tiny=True))
    found = ReconstructionError(examples=20, split="train")(looked_at(run))
    x = run.experiment.data.arrays("train", 20)["x"]
    image = run.model.reconstruct(run.variables, x).image
    expected = np.sum((x - image) ** 2) / np.sum((x - x.mean()) ** 2)
    assert found["normalised_error_of_train"] == pytest.approx(float(expected), rel=1e-4)
    assert all(name.endswith("_of_train") for name in found)
    assert not set(found) & set(ReconstructionError(examples=20)(looked_at(run)))


@pytest.mark.parametrize("scale", vq_reconstructions.SCALES)
def test_the_rate_is_equal(scale):
    own = {kind: load_experiment(name).model for kind, name in vq_reconstructions.EXPERIMENTS[scale].items()}
    base = own["ema"]
    kinds = vq_reconstructions.others(base.quantizer) | {kind: model.quantizer for kind, model in own.items()}
    assert set(kinds) == set(vq_reconstructions.NAMES)
    rates = {q.codes**q.per_place for q in kinds.values() if isinstance(q, Quantizer)}
    assert rates == {base.quantizer.size}
    assert kinds["ae"].outputs == kinds["vae"].outputs == base.quantizer.width
    assert all(replace(model, quantizer=base.quantizer) == base for model in own.values())


def test_reconstructions(monkeypatch, tmp_path):
    stand_in = Untrained(tmp_path)
    monkeypatch.setattr(vq_reconstructions, "made", stand_in.made)
    monkeypatch.setattr(vq_reconstructions, "read", stand_in.read)
    rows = list(vq_reconstructions.rows("tiny", None))
    assert [row["model"] for row in rows] == list(vq_reconstructions.NAMES.values())
    assert {row["rate"] for row in rows if "codes" in row} == {pytest.approx(16 * 6 / 64)}
    assert "rate" not in rows[0]
    assert rows[1]["rate"] > 0.0
    assert not set(in_table(rows[0])) & {"originals", "images"}
    test = load_experiment("vqvae_digits").data.arrays("test", 360)
    for label, image in enumerate(rows[0]["originals"]):
        where = np.flatnonzero((test["x"] == image[None]).all(axis=(1, 2, 3)))
        assert label in test["label"][where]
    for row, run in zip(rows, stand_in.runs.values(), strict=True):
        np.testing.assert_allclose(
            row["images"], run.model.reconstruct(run.variables, row["originals"]).image, atol=1e-5
        )
    labels = [text.get_text() for text in drawn(vq_reconstructions, rows).axes[0].get_yticklabels()]
    assert len(labels) == 1 + len(rows)
    assert f"error {rows[0]['normalised_error']:.4f}" in labels[1]
    lines = list(vq_reconstructions.summary(rows))
    assert len({len(line) for line in lines}) == 1  # columns under their heads


def test_usage_over_training(monkeypatch, tmp_path):
    def short(name):
        experiment = load_experiment(name, tiny=True)
        return replace(experiment, mesh=replace(experiment.mesh, data=1))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "load_experiment", short)
    monkeypatch.setattr(codebook_usage, "load_experiment", short)
    monkeypatch.setattr(codebook_usage, "WHERE", {"tiny": ("vqvae_digits", 8, 4)})
    monkeypatch.setattr(codebook_usage, "EVERY", 2)
    all_of_them = codebook_usage.VARIANTS
    few = {name: all_of_them[name] for name in ("data_restarts", "gradient_random")}
    monkeypatch.setattr(codebook_usage, "VARIANTS", few)
    rows = list(codebook_usage.rows("tiny", None))
    for row in rows:
        np.testing.assert_array_equal(row["steps"], (2, 4))  # and not the measurement at the end
        assert np.all((row["usage_curve"] > 0.0) & (row["usage_curve"] <= 1.0))
        assert np.all((row["perplexity_curve"] >= 1.0) & (row["perplexity_curve"] <= 8.0))
    assert [row["rule"] for row in rows] == ["averages, restarts", "gradient"]
    figure = drawn(codebook_usage, rows)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert len({len(line) for line in list(codebook_usage.summary(rows))[1:]}) == 1


def test_each_variant_has_a_line_of_its_own():
    looks = set()
    for codebook in codebook_usage.VARIANTS.values():
        looks.add((codebook.start, type(codebook).__name__, getattr(codebook, "restart", 0.0)))
        assert codebook.start in codebook_usage.STARTS
    assert len(looks) == len(codebook_usage.VARIANTS)


def test_rate_and_distortion(monkeypatch, tmp_path):
    for name, value in {"SIZES": (4, 16), "LEVELS": ((8, 6, 5),), "DEPTHS": (3,)}.items():
        monkeypatch.setattr(rate_distortion, name, value)
    monkeypatch.setattr(rate_distortion, "made", Untrained(tmp_path).made)
    rows = list(rate_distortion.rows("tiny", None))
    # T·log₂ K; three levels of 16 say as much as one codebook of 16³.
    np.testing.assert_allclose([row["bits"] for row in rows], [32.0, 64.0, 16 * math.log2(240), 16 * 12.0])
    for row in rows:
        assert 0.0 <= row["bits_of_entropy"] <= row["bits"]
        assert row["normalised_error"] != row["normalised_error_of_train"]
    axes = drawn(rate_distortion, rows).axes[0]
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == 2 * 3
    assert len({len(line) for line in rate_distortion.summary(rows)}) == 1
