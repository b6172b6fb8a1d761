"""The figures of margins and of features, from tiny runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.images import TFDS
from reproductions import feature_distances, margin_curves, margin_features, omniglot_verification
from reproductions.reproduction import in_table
from tests.conftest import needs
from training.cli import load_experiment
from training.loop import train


def drawn(module, rows):
    """Draws the figure, and says its summary."""
    figure = Figure(figsize=module.SIZE, layout="constrained")
    module.draw(rows, figure)
    FigureCanvasAgg(figure).draw()
    assert all(np.isfinite(value) for row in rows for value in in_table(row).values() if isinstance(value, float))
    return list(module.summary(rows)) if hasattr(module, "summary") else []


def made_tiny(name, folder=None, **changes):
    """In place of `made`: the experiment's tiny form on one device."""
    folder = Path(folder or Path("runs") / name)
    tiny = load_experiment(name, tiny=True)
    if not (folder / "summary.json").is_file():
        train(replace(tiny, mesh=replace(tiny.mesh, data=1), **changes), folder)
    return folder


def test_curves_of_margins_are_those_of_their_formulas():
    rows = {row["margin"]: row for row in margin_curves.rows("tiny", None)}
    theta = np.radians(margin_curves.DEGREES)
    np.testing.assert_allclose(rows["softmax, NormFace"]["value"], np.cos(theta), atol=1e-5)
    inside = (theta > 0.01) & (theta < np.pi - 0.51)
    np.testing.assert_allclose(rows["ArcFace m=0.5"]["slope"][inside], np.sin(theta + 0.5)[inside], atol=1e-3)
    large = rows["AdaFace, ẑ=1 (large norm)"]["value"]
    np.testing.assert_allclose(large[theta > 0.4], np.cos(theta - 0.4)[theta > 0.4] - 0.8, atol=1e-3)
    assert rows["softmax, NormFace"]["worth"] == 60.0
    assert rows["A-Softmax m=4"]["worth"] == 15.0
    assert all(row["worth"] < 60.0 for name, row in rows.items() if name != "softmax, NormFace")
    drawn(margin_curves, list(rows.values()))
    assert "A-Softmax m=4 at 15.0°" in margin_curves.headline(list(rows.values()))


def test_gaps_are_the_empty_angles_between_sectors():
    degrees = np.asarray([80, 90, 100, 200, 210, 220, -10, 0, 10])
    u = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    label = np.repeat([3, 5, 7], 3)
    found = margin_features.gaps(u, label, part=1.0)
    np.testing.assert_allclose(sorted(found), [70.0, 100.0, 130.0], atol=1e-9)
    assert margin_features.gaps(u[[0, 1, 2, 1, 2, 0]], np.asarray([0, 0, 0, 1, 1, 1]), part=1.0).min() < 0


@pytest.mark.thorough
@needs("mnist")
def test_the_plane_of_each_loss_is_drawn_from_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(margin_features, "PANELS", margin_features.PANELS[:1] + margin_features.PANELS[-2:-1])

    def with_both(name, folder=None, **changes):
        metrics = load_experiment(name).metrics
        return made_tiny(name, folder, metrics=metrics, **changes)

    monkeypatch.setattr(margin_features, "made", with_both)
    rows = list(margin_features.rows("small", None))
    assert [row["loss"] for row in rows] == ["softmax", "AM-Softmax, m = 0.15"]
    assert rows[0]["h"].shape == (margin_features.SHOWN, 2)
    assert len(drawn(margin_features, rows)) == 3


@needs("omniglot")
@pytest.mark.thorough
def test_losses_are_compared_over_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(omniglot_verification, "made", made_tiny)
    monkeypatch.setattr(omniglot_verification, "COMPARED", {"small": ("softmax",)})
    monkeypatch.setattr(omniglot_verification, "SEEDS", {"small": (0, 1)})
    monkeypatch.setattr(omniglot_verification, "COLUMNS", ("verification_accuracy", "tar_at_far_0.05", "rank1", "eer"))
    (row,) = omniglot_verification.rows("small", None)
    assert row["tar"].shape == omniglot_verification.FAR.shape
    assert (np.diff(row["tar"]) >= 0).all()
    assert row["tar"][-1] == 1.0
    assert row["rank1_std"] >= 0.0
    others = [row | {"loss": name} for name in ("arcface", "normface", "triplet")]
    assert len(drawn(omniglot_verification, [row, *others])) == 6
    assert "softmax" in omniglot_verification.headline([row, *others])


def test_the_best_margin_is_told_from_plain_softmax_by_the_spread():
    def told(**found):
        """The last line; (mean, standard deviation) of each loss, in percent."""
        columns = omniglot_verification.COLUMNS
        rows = []
        for loss, (mean, spread) in found.items():
            numbers = {f"{name}{end}": v / 100 for name in columns for end, v in (("", mean), ("_std", spread))}
            rows.append({"loss": loss, "seconds": 1.0} | numbers)
        return list(omniglot_verification.summary(rows))[-1]

    losses = {"softmax": (90.0, 0.5), "normface": (88.0, 0.1), "supcon": (95.0, 0.1)}
    assert told(**losses, arcface=(92.0, 1.0)) == (
        "the best margin, arcface (92.00 ± 1.00 %), beats softmax (90.00 ± 0.50 %), beyond the spread: "
        "+2.00 against 1.50; the best of all losses is supcon (95.00 ± 0.10 %)"
    )
    assert "does not beat softmax (90.00 ± 0.50 %), beyond the spread: +2.00 against 2.50" in told(
        **losses, arcface=(92.0, 2.0)
    )
    assert "the best margin, normface (88.00 ± 0.10 %), does not beat" in told(**losses)


@pytest.mark.thorough
@needs("mnist")
def test_runs_are_judged_in_an_embedders_features(tmp_path, monkeypatch, capsys):
    """Every finished run of MNIST's pictures is found, one that draws nothing is not; blur and noise take away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_distances, "made", made_tiny)
    monkeypatch.setattr(feature_distances, "DATA", {"small": TFDS(name="mnist", test="test[:4000]")})
    monkeypatch.setattr(feature_distances, "BLURS", {"small": (2.0,)})
    monkeypatch.setattr(feature_distances, "NOISES", {"small": (0.8,)})
    monkeypatch.setattr(feature_distances, "TEMPERATURES", {"small": (1.0, 0.5)})
    made_tiny("nice_mnist")
    made_tiny("nice_mnist", Path("runs/nice_mnist_cut"))  # a figure's at tiny alone
    (old := tmp_path / "runs" / "old").mkdir()
    (old / "summary.json").write_text("{}")
    (old / "config.json").write_text('{"type": "gone.Experiment"}')
    rows = list(feature_distances.rows("small", None))
    assert "skipped runs/old: config: no dataclass 'gone.Experiment' is known here" in capsys.readouterr().out
    names = [row["what"] for row in rows]
    assert names[0] == "one half of the test images"
    assert names[-2:] == ["nice_mnist, temperature 1", "nice_mnist, temperature 0.5"]
    assert sum(row["kind"] == "run" for row in rows) == 2
    pixels = {row["what"]: row["frechet_pixels"] for row in rows}
    assert pixels["one half of the test images"] < pixels["blurred by 2 pixels"]
    assert pixels["one half of the test images"] < pixels["noise of 0.8"]
    assert len(drawn(feature_distances, rows)) == len(rows) + 2
    assert "between halves" in feature_distances.headline(rows)


@pytest.mark.parametrize(("second", "told"), [(3.0, "rises"), (2.0, "does not rise"), (0.5, "does not rise")])
def test_a_distance_that_rises_with_every_step_is_told_from_one_that_does_not(second, told):
    """From that of no blur and no noise on, which is the first row's."""
    none = dict.fromkeys(("kid", "precision", "recall", "density", "coverage", "frechet_pixels", "strength"), 0.0)
    values = (("data", 1.0), ("blur", 2.0), ("noise", 1.5), ("blur", second), ("data", 9.0), ("noise", 1.6))
    rows = [none | {"what": kind, "kind": kind, "frechet": value} for kind, value in values]
    assert list(feature_distances.summary(rows))[-1] == (
        f"the Fréchet distance in the embedder's features {told} with every step of blur and rises with every step of "
        "noise"
    )


@pytest.mark.parametrize("module", [margin_features, omniglot_verification])
def test_every_loss_that_is_compared_is_an_experiment(module):
    prefix = "margin_mnist2d_" if module is margin_features else "margin_omniglot_"
    base = load_experiment(f"{prefix}softmax")
    losses = {name for _, name, _ in module.PANELS} if module is margin_features else module.LOSSES
    for loss in losses:
        experiment = load_experiment(prefix + loss)
        budget = ("steps", "batch_size", "optimizer", "ema", "metrics")
        assert all(getattr(experiment, name) == getattr(base, name) for name in budget)
        assert experiment.model.net == base.model.net
