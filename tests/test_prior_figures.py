"""The figures of second stages: from tiny runs over one tiny first stage, and from made-up rows."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from metrics.classifier import Classifier
from reproductions import code_priors, latent_diffusion
from reproductions.reproduction import in_table
from training.cli import load_experiment
from training.inputs import example_batch
from training.loop import train
from training.trained import Trained, trained


class Fixed:
    """In the place of a fitted MLP: the brightest of ten pixels is the class, and of no pixel is it sure."""

    def predict(self, x):
        return np.argmax(x[:, 20:30], axis=1)

    def predict_proba(self, x):
        return np.full((len(x), 10), 0.1)


class Judged(Classifier):
    def features(self, x):
        return x.reshape(len(x), -1)[:, :40:4].astype(np.float64)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder in which runs/vqvae_digits_cut is a first stage in its tiny form."""
    folder = tmp_path_factory.mktemp("first")
    experiment = load_experiment("vqvae_digits", tiny=True)
    mesh = replace(experiment.mesh, data=1)
    short = replace(experiment, steps=2, log_every=2, mesh=mesh, sample_every=0, metrics=())
    train(short, folder / "runs" / "vqvae_digits_cut")
    return folder


@pytest.fixture
def asked(first, monkeypatch):
    """Runs are not trained: name → what was asked for. Their models are those of the tiny forms."""
    monkeypatch.chdir(first)
    asked, names = {}, {}

    def made(name, folder=None, **changes):
        folder = folder or Path("runs") / name
        asked[name], names[folder] = changes, name
        if name != "vqvae_digits":
            folder.mkdir(exist_ok=True)
            (folder / "summary.json").write_text('{"seconds": 100.0}')
        return folder

    def read(folder):
        name = names[folder]
        experiment = load_experiment(name, tiny=True)
        experiment = replace(experiment, data=asked[name].get("data", experiment.data))
        if name == "vqvae_digits":
            return trained(folder)
        model = experiment.resolved_model()
        return Trained(experiment, model, jax.jit(model.init)(jax.random.key(0), example_batch(experiment)), 0)

    for module in (code_priors, latent_diffusion):
        monkeypatch.setattr(module, "made", made)
        monkeypatch.setattr(module, "run_of", lambda cut: made(cut.experiment, Path("runs/vqvae_digits_cut")))
        monkeypatch.setattr(module, "read", read)
        monkeypatch.setattr(module, "SAMPLES", {"tiny": 40})
    monkeypatch.setattr(code_priors, "judge_of", lambda data: Judged(Fixed(), 0.75))
    monkeypatch.setattr(code_priors, "KEPT", 30)
    return asked


def test_records_of_all_classes_in_turn():
    label = np.array([2, 0, 0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(code_priors.in_turn(label, 100), [1, 3, 0, 2, 6, 4])  # there are two of class 1
    np.testing.assert_array_equal(code_priors.in_turn(label, 5), [1, 3, 0])


@pytest.mark.thorough
def test_priors_over_one_first_stage(asked, monkeypatch):
    # One of each kind: the others differ from the first in their nets alone.
    kinds = ("vqvae_prior_transformer", "vqvae_prior_masked", "latent_diffusion_mnist")
    monkeypatch.setattr(code_priors, "PRIORS", {name: code_priors.PRIORS[name] for name in kinds})
    monkeypatch.setitem(code_priors.MASKED_STEPS, "tiny", (1, 3))
    rows = list(code_priors.rows("tiny", None))
    assert [(row["model"], row.get("steps")) for row in rows] == [
        *((code_priors.REAL, None), (code_priors.RECONSTRUCTED, None)),
        *(("transformer", 16), ("masked transformer", 1), ("masked transformer", 3), ("latent diffusion", 5)),
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
        assert row["bits_per_dim"] == pytest.approx(row["bits_per_dim_of_codes"] + row["bits_per_dim_of_images"])
    assert "images" not in in_table(rows[0])
    figure = Figure()
    code_priors.draw(rows, figure)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names[3:] == ["masked transformer, 1 step", "masked transformer, 3 steps", "latent diffusion"]
    assert len(figure.axes[1].lines) == 3 + 2
    _, *lines = code_priors.summary(rows)
    assert len(lines) == len(rows)
    assert code_priors.headline(rows).startswith("transformer ")
    assert lines[3].endswith(f"= {rows[3]['bits_per_dim']:.4f}, of codes a bound")
    assert len({line.index(".", len(names[4]) + 1) for line in lines}) == 1  # a column


@pytest.mark.thorough
def test_every_prior_is_of_the_first_stage_at_hand(asked):
    for name in code_priors.PRIORS:
        folder = code_priors.prior(name, "tiny")
        assert folder == Path("runs") / f"{name}_cut"
        assert asked[name]["data"] == replace(load_experiment(name).data, codes="runs/vqvae_digits_cut")
    assert {name for name, changes in asked.items() if "sampler" in changes} == {"vqvae_prior_masked"}


@pytest.mark.thorough
def test_latents_beside_pixels(asked, monkeypatch):
    monkeypatch.setattr(latent_diffusion, "STEPS", (2,))
    rows = list(latent_diffusion.rows("tiny", None))
    assert [(row["model"], row["numbers"]) for row in rows[2:]] == [("latents", "4x4x4"), ("pixels", "8x8x1")]
    assert [row["network_calls"] for row in rows[2:]] == [3, 3]
    latent_diffusion.draw(rows, Figure())
    assert "latents " in latent_diffusion.headline(rows)
    assert "same time" not in "\n".join(latent_diffusion.summary(rows))
    rows[3]["training_seconds"] = 106.0
    assert "pixels 1.06 times that of latents" in "\n".join(latent_diffusion.summary(rows))


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_both_are_trained_alike(monkeypatch, scale):
    """The pixels' net differs from the latents' in its patch alone, and reads as many tokens."""
    asked = {}
    monkeypatch.setattr(latent_diffusion, "made", lambda name, folder, **changes: asked.update(changes) or folder)
    latents = load_experiment("latent_diffusion_mnist")
    run = Trained(latents, latents.model, {}, 0)
    end = "_equal_time" + ("_cut" if scale == "tiny" else "")
    assert latent_diffusion.pixels(scale, run).name == f"{latent_diffusion.PIXELS[scale][0]}{end}"
    assert all(asked[field] == getattr(latents, field) for field in latent_diffusion.SAME)
    net = asked["model"].net
    assert net.clone(patch=1) == latents.model.net
    assert (asked["metrics"], asked["sample_every"]) == ((), 0)
    side = 28 if scale == "small" else 8
    assert (side // net.patch) ** 2 == (49 if scale == "small" else 16)
