"""The flows' figures, from untrained or tiny runs; and each flow experiment takes steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from reproductions import backward_memory, ffjord, glow, nice
from reproductions.reproduction import in_table
from tests.conftest import needs, tiers
from tests.test_reproduce import untrained
from training.cli import load_experiment
from training.loop import train

MNIST = ("nice_mnist", "glow_mnist", "tarflow_mnist", "ffjord_mnist")
ALONE = ("realnvp_digits", "spline_toy", "ffjord_toy", "maf_tabular")


@pytest.mark.parametrize(
    "name",
    [
        *tiers(ALONE, first=("maf_tabular",)),
        *(pytest.param(name, marks=[needs("mnist"), pytest.mark.thorough]) for name in MNIST),
    ],
)
def test_it_trains_and_is_measured(name, tmp_path):
    experiment = load_experiment(name, tiny=True)
    mesh = replace(experiment.mesh, data=1)
    summary = train(replace(experiment, steps=2, mesh=mesh, sample_every=0, metrics=experiment.metrics[:1]), tmp_path)
    assert math.isfinite(summary["loss"])
    if experiment.metrics:
        given = "_given_label" if experiment.model.num_classes else ""
        assert math.isfinite(summary[("bits_per_dim" if experiment.data.bin_width else "nll") + given])
    if name == "ffjord_toy":
        assert summary["nfe"] == 4 * 2  # rk4 in two steps


@pytest.mark.thorough
def test_glows_figure(monkeypatch):
    monkeypatch.setattr(glow, "TEMPERATURES", (0.5, 1.0))
    rows = list(glow.rows("tiny", untrained(load_experiment("glow_digits", tiny=True))))
    assert [row.get("temperature") for row in rows] == [*glow.TEMPERATURES, None]
    assert rows[-1]["images"].shape == (glow.PAIRS * glow.BETWEEN, 8, 8, 1)
    figure = Figure()
    glow.draw(rows, figure)
    assert "bits_per_dim_given_label" in "\n".join(glow.summary(rows))
    assert glow.headline(rows).startswith(f"{rows[-1]['bits_per_dim_given_label']:.3f} bits/dim")


@pytest.mark.thorough
@needs("mnist")
def test_nices_figure(monkeypatch):
    monkeypatch.setattr(nice, "EXAMPLES", {"tiny": 16})
    rows = list(nice.rows("tiny", untrained(load_experiment("nice_mnist", tiny=True))))
    assert len([row for row in rows if row["what"].startswith("filled in")]) == 4
    nice.draw(rows, Figure())
    assert "1980.5 nats" in "\n".join(nice.summary(rows))
    assert "nats, test split" in nice.headline(rows)


@pytest.mark.thorough
def test_ffjords_figure(monkeypatch):
    run = untrained(load_experiment("ffjord_toy", tiny=True))
    monkeypatch.setattr(ffjord, "made", lambda *_, **__: None)
    monkeypatch.setattr(ffjord, "read", lambda _: run)
    for name, value in {"EXAMPLES": 64, "FRAMES": 3, "SIDE": 8}.items():
        monkeypatch.setattr(ffjord, name, {"tiny": value})
    rows = list(ffjord.rows("tiny", None))
    assert rows[0]["nfe, trained with"] == 8
    # A field that has learnt nothing is 0: the density is the prior's at all times.
    np.testing.assert_allclose(rows[0]["densities"][0], rows[0]["densities"][-1], atol=1e-5)
    ffjord.draw(rows, Figure())
    assert len(ffjord.animation(rows)) == 3
    assert "samples" not in in_table(rows[0])
    assert "two moons" in ffjord.headline(rows)


def test_memory_of_backward_passes(monkeypatch):
    for name, value in {"DEPTHS": {"tiny": (8, 16)}, "DIMENSIONS": 64, "WIDTH": 8, "BATCH": 16}.items():
        monkeypatch.setattr(backward_memory, name, value)
    rows = list(backward_memory.rows("tiny", None))
    memory = {(row["backward"], row["layers"]): row["memory_mib"] for row in rows}
    assert memory["none", 16] > memory["full", 16] > memory["reversible", 16]
    backward_memory.draw(rows, Figure())
    assert len(list(backward_memory.summary(rows))) == 5
    assert backward_memory.headline(rows).startswith("16 layers: ")
