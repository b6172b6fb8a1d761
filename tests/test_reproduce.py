"""reproduce.py: the registry, a figure and a table from start to end, and mistakes."""

import csv

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.digits_ve import tiny as digits
from reproductions import ddim_table1, heat_ode, score_sde_samplers
from reproductions.reproduction import Trained, load, names
from tests.test_scripts import finish
from training.cli import experiment_names
from training.run import example_batch


def test_every_entry_is_whole():
    assert set(names()) >= {"ddim_table1", "score_sde_samplers", "heat_ode", "error_vs_nfe", "sde_forward_backward"}
    for name in names():
        module = load(name)
        assert "tiny" in module.SCALES
        assert {wanted for wanted in module.SCALES.values() if wanted} <= set(experiment_names())
        assert callable(module.rows)
        assert callable(module.draw)


def test_the_heat_equation_holds_and_the_solver_follows_it():
    rows = list(heat_ode.rows("tiny", None))
    assert rows[-1]["heat_equation_residual"] < 1e-10
    assert rows[0]["largest_error"] < 1e-12
    assert max(row["largest_error"] for row in rows[:-1]) < 0.1


def test_a_figure_and_a_table_are_written(tmp_path):
    code, out, _ = finish("reproduce.py", "sde_forward_backward", "--out", str(tmp_path))
    assert code == 0
    assert "wrote" in out
    assert (tmp_path / "sde_forward_backward.png").stat().st_size > 50_000
    with (tmp_path / "sde_forward_backward.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        error = 5 / np.sqrt(float(row["samples"]))  # and the SDE's own, of first order in 500 steps
        assert float(row["mean"]) == pytest.approx(float(row["exact_mean"]), abs=error)
        assert float(row["std"]) == pytest.approx(float(row["exact_std"]), rel=error)


def test_table_1_is_drawn_and_summed_up_from_its_rows():
    rows = [
        {"eta": eta, "steps": steps, "frechet_pixels": 100.0 / steps + k, "frechet_classifier": 50.0 / steps + k}
        | {"paper_fid_cifar10": paper, "seconds": steps / 100}
        for k, eta in enumerate(ddim_table1.SOLVERS, 1)
        for steps, paper in zip(ddim_table1.STEPS, ddim_table1.PAPER[eta], strict=True)
    ]
    figure = Figure()
    ddim_table1.draw(rows, figure)
    assert [len(axes.lines) for axes in figure.axes] == [5, 5, 5]
    text = "\n".join(ddim_table1.summary(rows))
    assert "DDIM(0) in 20 steps: +445.5 % of its 1000-step figure" in text
    assert "50 steps: 20.0 times as fast as 1000" in text


def test_score_sdes_samplers_are_measured_drawn_and_summed_up(monkeypatch):
    """All cells in few steps, by a network that has learnt nothing: x̂₀ = c_skip·x."""
    model = digits.resolved_model()
    variables = model.init(jax.random.key(0), jax.tree.map(jax.numpy.asarray, example_batch(digits, 2)))
    monkeypatch.setitem(score_sde_samplers.CALLS, "tiny", (10,))
    rows = list(score_sde_samplers.rows("tiny", Trained(digits, model, variables, 0)))
    cells = [row for row in rows if row["sampler"] != "test images"]
    assert len(cells) == 1 + 3 + 4 + 1
    assert all(np.isfinite([row["frechet_pixels"], row["frechet_classifier"]]).all() for row in rows)
    calls = {(row["sampler"], row["predictor"], row["snr"]): row["network_calls"] for row in cells}
    assert calls["P", "ancestral", ""] == 10
    assert calls["PC", "ancestral", 0.02] == 5 + 4
    assert next(calls[key] for key in calls if key[0] == "C") == 2 * 4 + 1
    figure = Figure()
    score_sde_samplers.draw(rows, figure)
    assert [len(axes.get_legend_handles_labels()[1]) for axes in figure.axes] == [10, 10, 7]
    assert len(list(score_sde_samplers.summary(rows))) == 1 + len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddim_table",), "there is no reproduction 'ddim_table'; did you mean ddim_table1"),
        (("heat_ode", "--run", "runs/x"), "heat_ode takes no --run"),
        (("ddim_table1", "--run", "nowhere"), "nowhere holds no run"),
    ],
)
def test_mistakes(arguments, message):
    code, _, err = finish("reproduce.py", *arguments)
    assert code == 2
    assert message in err


def test_the_list():
    code, out, _ = finish("reproduce.py", "--list")
    assert code == 0
    assert "DDIM's table 1" in out
