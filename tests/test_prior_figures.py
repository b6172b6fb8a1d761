"""The figures of second stages: from tiny runs over one tiny first stage, and from made-up rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from metrics.classifier import Classifier
from reproductions import code_priors, latent_diffusion
from reproductions.reproduction import in_table
from training.cli import load_experiment
from training.loop import train


class Fixed:
    """In the place of a fitted MLP: the brightest of ten pixels is the class, and of no pixel is it sure."""

    def predict(self, x):
        return np.argmax(x[:, 20:30], axis=1)

    def predict_proba(self, x):
        return np.full((len(x), 10), 0.1)


class Judged(Classifier):
    def features(self, x):
        return x.reshape(len(x), -1)[:, :40:4].astype(np.float64)


def tiny(name, folder=None, **changes):
    """As `made`, with the nets of the tiny form and two steps."""
    folder = folder or Path("runs") / name
    given = load_experiment(name, tiny=True)
    changes = {key: value for key, value in changes.items() if key in ("data", "sampler", "sample_every", "metrics")}
    if not (folder / "summary.json").is_file():
        short = {"steps": 2, "log_every": 2, "mesh": replace(given.mesh, data=1), "sample_every": 0, "metrics": ()}
        train(replace(given, **{**changes, **short}), folder)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (code_priors, latent_diffusion):
        monkeypatch.setattr(module, "made", tiny)
        monkeypatch.setattr(module, "SAMPLES", 40)
    monkeypatch.setattr(code_priors, "classifier", lambda data: Judged(Fixed(), 0.75))
    monkeypatch.setattr(code_priors, "KEPT", 30)
    monkeypatch.setitem(code_priors.MASKED_STEPS, "tiny", (1, 3))
    # One of each kind: the others differ from the first in their nets alone.
    kinds = ("vqvae_prior_transformer", "vqvae_prior_masked", "latent_diffusion_mnist")
    monkeypatch.setattr(code_priors, "PRIORS", {name: code_priors.PRIORS[name] for name in kinds})


def test_records_of_all_classes_in_turn():
    label = np.array([2, 0, 0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(code_priors.in_turn(label, 100), [1, 3, 0, 2, 6, 4])  # there are two of class 1
    np.testing.assert_array_equal(code_priors.in_turn(label, 5), [1, 3, 0])


def test_priors_over_one_first_stage(small):
    rows = list(code_priors.rows("tiny", None))
    names = [(row["model"], row.get("steps")) for row in rows]
    assert names == [
        *((code_priors.REAL, None), (code_priors.RECONSTRUCTED, None)),
        *(("transformer", 16), ("masked transformer", 1), ("masked transformer", 3), ("latent diffusion", 6)),
    ]
    assert rows[0]["class_accuracy"] == 0.75
    for row in rows:
        assert row["images"].shape == (30, 8, 8, 1)
        assert row["samples"] == 40
        assert np.isfinite(row["frechet_classifier"])
    assert [row.get("probability_of_codes") for row in rows[2:]] == ["exact", "bound", "bound", None]
    for row in rows[2:5]:
        # An untrained prior is about as good as codes of equal length: 16·log₂ 8 bits of 64 pixels.
        assert row["bits_per_dim_of_codes"] == pytest.approx(16 * 3 / 64, abs=0.15)
        parts = row["bits_per_dim_of_codes"] + row["bits_per_dim_of_images"]
        assert row["bits_per_dim"] == pytest.approx(parts)
    assert "images" not in in_table(rows[0])
    figure = Figure()
    code_priors.draw(rows, figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][3:] == [
        *("masked transformer, 1 step", "masked transformer, 3 steps", "latent diffusion")
    ]
    assert len(figure.axes[1].lines) == 3 + 2
    _, *lines = code_priors.summary(rows)
    assert len(lines) == len(rows)
    assert lines[3].endswith(f"= {rows[3]['bits_per_dim']:.4f}, of codes a bound")
    assert len({line.index(".", len("masked transformer, 3 steps") + 6) for line in lines}) == 1  # a column


def test_latents_beside_pixels(small, monkeypatch):
    monkeypatch.setattr(latent_diffusion, "STEPS", (1, 2))
    rows = list(latent_diffusion.rows("tiny", None))
    assert [row["model"] for row in rows[2:]] == ["latents"] * 2 + ["pixels"] * 2
    assert [row["network_calls"] for row in rows[2:]] == [2, 4, 2, 4]
    assert [row["numbers"] for row in rows[3:5]] == ["4x4x4", "8x8x1"]
    latent_diffusion.draw(rows, Figure())
    for row in rows[2:]:
        row["training_seconds"] = 100.0 if row["model"] == "latents" else 104.0
    assert "same time" not in "\n".join(latent_diffusion.summary(rows))
    rows[4]["training_seconds"] = 106.0
    assert "pixels 1.06 times that of latents" in "\n".join(latent_diffusion.summary(rows))


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_both_are_trained_alike(monkeypatch, scale):
    """The pixels' net differs from the latents' in its patch alone, and reads as many tokens."""
    asked = {}
    monkeypatch.setattr(latent_diffusion, "made", lambda name, folder, **changes: asked.update(changes) or folder)
    latents = load_experiment("latent_diffusion_mnist")
    run = code_priors.Trained(latents, latents.model, {}, 0)
    assert latent_diffusion.pixels(scale, run).name == f"{latent_diffusion.PIXELS[scale][0]}_equal_time"
    assert all(asked[field] == getattr(latents, field) for field in latent_diffusion.SAME)
    net = asked["model"].net
    assert net.clone(patch=1) == latents.model.net
    assert (asked["metrics"], asked["sample_every"]) == ((), 0)
    side = 28 if scale == "small" else 8
    assert (side // net.patch) ** 2 == (49 if scale == "small" else 16)
