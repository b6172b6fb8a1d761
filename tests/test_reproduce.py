"""reproduce.py: the registry, a figure and a table from start to end, and mistakes; test_all_figures.py is of all."""

import csv
import re
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.digits_flow import experiment as flow_in_full
from experiments.digits_flow import tiny as flow
from experiments.digits_ve import tiny as digits
from reproductions import (
    ddim_table1,
    editing,
    few_steps,
    guidance_sweep,
    heat_ode,
    reflow,
    score_sde_samplers,
)
from reproductions.record import read
from reproductions.reproduction import Cut, Source, in_table, load, names
from reproductions.runs import run_of
from tests.scripts import here
from training.cli import experiment_names
from training.inputs import example_batch
from training.trained import Trained


def untrained(experiment):
    model = experiment.resolved_model()
    variables = jax.jit(model.init)(jax.random.key(0), jax.tree.map(jax.numpy.asarray, example_batch(experiment)))
    return Trained(experiment, model, variables, 0)


def test_every_entry_is_whole():
    assert set(names()) >= {
        "reflow",
        "few_steps",
        "guidance_sweep",
        "editing",
        "ddim_table1",
        "score_sde_samplers",
        "heat_ode",
        "error_vs_nfe",
        "sde_forward_backward",
    }
    for name in names():
        module = load(name)
        assert {"tiny", "small"} <= set(module.SCALES)
        trained = {wanted.experiment if isinstance(wanted, Cut) else wanted for wanted in module.SCALES.values()}
        assert trained - {None} <= set(experiment_names())
        assert isinstance(module.SOURCE, Source)
        assert module.SOURCE.paper
        assert module.SOURCE.equation
        assert all(re.fullmatch(r"\d{4}\.\d{4,5}", one) for one in module.SOURCE.arxiv.split(", ") if one)
        assert callable(module.rows)
        assert callable(module.draw)
        assert callable(module.headline)


def test_a_run_that_is_cut_short_is_one_run():
    """Modules that cut an experiment short cut it alike, and its run is not that of the whole, nor of the tiny form."""
    cuts = {}
    for name in names():
        for wanted in load(name).SCALES.values():
            if isinstance(wanted, Cut):
                assert cuts.setdefault(wanted.experiment, wanted) == wanted, name
    assert cuts["digits_flow"].steps < flow_in_full.steps
    with mock.patch("reproductions.runs.made", side_effect=lambda name, folder, **_: folder):
        assert run_of(cuts["digits_flow"]) == Path("runs/digits_flow_cut")


@pytest.mark.thorough
def test_the_heat_equation_holds_and_the_solver_follows_it():
    rows = list(heat_ode.rows("tiny", None))
    assert rows[-1]["heat_equation_residual"] < 1e-10
    assert rows[0]["largest_error"] < 1e-12
    assert max(row["largest_error"] for row in rows[:-1]) < 0.1


def test_a_figure_and_a_table_are_written(tmp_path):
    code, out, _ = here("reproduce.py", "sde_forward_backward", "--out", str(tmp_path))
    assert code == 0
    assert "wrote" in out
    assert (tmp_path / "sde_forward_backward.png").stat().st_size > 50_000
    with (tmp_path / "sde_forward_backward.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    record = read(tmp_path, "sde_forward_backward")
    assert record is not None
    assert record.command == "python reproduce.py sde_forward_backward --scale tiny"
    assert record.headline in (tmp_path / "index.html").read_text()
    for row in rows:
        error = 5 / np.sqrt(float(row["samples"]))  # and the SDE's own, of first order in 500 steps
        assert float(row["mean"]) == pytest.approx(float(row["exact_mean"]), abs=error)
        assert float(row["std"]) == pytest.approx(float(row["exact_std"]), rel=error)


def test_table_1_is_drawn_and_summed_up_from_its_rows():
    rows = [
        {"eta": eta, "steps": steps, "frechet_pixels": 100.0 / steps + k, "frechet_classifier": 50.0 / steps + k}
        | {"paper_fid_cifar10": paper, "seconds": steps / 100}
        for k, eta in enumerate(ddim_table1.SOLVERS, 1)
        for steps, paper in zip(ddim_table1.ALL_STEPS, ddim_table1.PAPER[eta], strict=True)
    ]
    figure = Figure()
    ddim_table1.draw(rows, figure)
    assert [len(axes.lines) for axes in figure.axes] == [5, 5, 5]
    text = "\n".join(ddim_table1.summary(rows))
    assert "DDIM(0) in 20 steps: +445.5 % of its 1000-step figure" in text
    assert "50 steps: 20.0 times as fast as 1000" in text
    assert ddim_table1.headline(rows).startswith("6.00 in 10 steps, 1.05 in 1000 steps (η = 0); σ̂ in 10: 10.0")
    text = "\n".join(ddim_table1.summary([row for row in rows if row["steps"] < 1000]))
    assert "DDIM(0) in 50 steps: +50.0 % of its 100-step figure" in text


@pytest.mark.thorough
def test_score_sdes_samplers_are_measured_drawn_and_summed_up(monkeypatch):
    """All cells in few steps, by a network that has learnt nothing: x̂₀ = c_skip·x."""
    monkeypatch.setitem(score_sde_samplers.CALLS, "tiny", (10,))
    rows = list(score_sde_samplers.rows("tiny", untrained(digits)))
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
    best = min(row["frechet_classifier"] for row in rows if row["sampler"] == "PC")
    assert f"PC {best:.2f}" in score_sde_samplers.headline(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddim_table",), "there is no reproduction 'ddim_table'; did you mean ddim_table1"),
        (("heat_ode", "--run", "runs/x"), "heat_ode takes no --run"),
        (("ddim_table1", "--run", "nowhere"), "nowhere holds no run"),
        (("glow", "--scale", "large"), "glow has the scales tiny, small, mnist, paper, not large"),
        (("glow", "--all"), "either a NAME or --all"),
        (("--all", "--run", "runs/x"), "--all takes no --run"),
        (("--all", "--scale", "tinny"), "no figure has the scale tinny"),
    ],
)
def test_mistakes(arguments, message):
    code, _, err = here("reproduce.py", *arguments)
    assert code == 2
    assert message in err


def test_the_list():
    code, out, _ = here("reproduce.py", "--list")
    assert code == 0
    assert "DDIM's table 1" in out


@pytest.mark.thorough
def test_the_guidance_sweep_is_measured_and_drawn(monkeypatch):
    monkeypatch.setattr(guidance_sweep, "WEIGHTS", {"tiny": (0.0, 1.0, 3.0, 6.0)})
    monkeypatch.setattr(guidance_sweep, "SAMPLES", {"tiny": 100})
    rows = list(guidance_sweep.rows("tiny", untrained(flow)))
    assert rows[0]["class_accuracy"] >= 0.97  # of the classifier that judges, on held-out digits
    assert [row["guidance"] for row in rows[1:]] == [0.0, 1.0, 3.0, 6.0]
    # A network that has learnt nothing says the same of every class.
    assert all(0.0 <= row["class_accuracy"] < 0.4 for row in rows[1:])
    figure = Figure()
    guidance_sweep.draw(rows, figure)
    assert len(list(guidance_sweep.summary(rows))) == 1 + len(rows)
    assert "at scale 3" in guidance_sweep.headline(rows)


def test_diversity_is_the_mean_distance_within_a_class():
    x = np.asarray([[0.0], [1.0], [3.0], [10.0], [14.0]])
    assert guidance_sweep.diversity(x, np.asarray([0, 0, 0, 1, 1])) == pytest.approx((2.0 + 4.0) / 2)


@pytest.mark.thorough
def test_edited_images_keep_what_was_measured():
    rows = list(editing.rows("tiny", untrained(flow)))
    cell = {(row["task"], row["method"]): row for row in rows}
    assert cell["inpainting", "replacement"]["largest_residual"] == 0.0
    assert cell["super-resolution", "replacement"]["largest_residual"] < 1e-5
    for task in ("inpainting", "super-resolution"):
        assert cell[task, "reconstruction"]["residual"] < 0.05
    figure = Figure()
    editing.draw(rows, figure)
    assert len(figure.axes) == 10 * editing.IMAGES
    assert len(list(editing.summary(rows))) == 1 + len(rows)
    assert "super-resolution" in editing.headline(rows)


def test_reflows_ratios_are_those_of_its_rows():
    rows = [
        {"density": "two_moons", "seed": seed, "model": model, "wasserstein_1": w, "straightness": s}
        for seed, better in ((0, 10.0), (1, 6.0))
        for model, w, s in (("flow", 0.6, 1.0), ("reflow", 0.6 / better, 0.1), ("meanflow", 0.2, 0.3))
    ]
    text = "\n".join(reflow.summary(rows))
    assert "one step after reflow: 0.6000 → 0.0800, better by a factor of 8.0 (at least 6.0 over 2 seeds)" in text
    assert "MeanFlow's one step: 0.6000 → 0.2000, better by a factor of 3.0" in text
    assert reflow.headline(rows).endswith("two moons: 0.600 before reflow, 0.080 after reflow, 0.200 MeanFlow")


@pytest.mark.thorough
def test_reflow_is_drawn_from_its_rows_and_arrays_stay_out_of_the_table():
    arrays = {"states": np.zeros((51, 7, 2)), "one_step": np.zeros((5, 2))}
    numbers = {"straightness": 0.1, "wasserstein_1": 0.1, "wasserstein_of_exact": 0.01}
    rows = [{"density": "two_moons", "seed": 0, "model": model, **numbers, **arrays} for model in reflow.MODELS]
    assert in_table(rows[0]).keys() == {"density", "seed", "model", *numbers}
    figure = Figure()
    reflow.draw(rows, figure)
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == 7
    assert len(reflow.animation(rows)) == 26


def test_few_steps_are_drawn_from_their_rows():
    rows = [{"model": "two exact sets", "wasserstein": 0.01}]
    rows += [
        {"model": model, "network_calls": n, "wasserstein": 1.0 / n}
        for model, _, calls in few_steps.MODELS.values()
        for n in calls
    ]
    figure = Figure()
    few_steps.draw(rows, figure)
    assert len(figure.axes[0].lines) == len(few_steps.MODELS) + 1
    assert "shortcut" in "\n".join(few_steps.summary(rows))
    assert "rectified flow 1.000, reflow 1.000" in few_steps.headline(rows)


def test_few_steps_cut_short_stand_on_one_another(monkeypatch):
    """Teachers are the cut runs, and a doubling comes as often in a cut training as in the whole."""
    asked = {}
    monkeypatch.setattr(few_steps, "made", lambda name, folder, **changes: asked.update({name: changes}) or folder)
    folders = {few_steps.run(name, "tiny") for name in few_steps.MODELS}
    assert folders == {Path("runs") / f"{name}_cut" for name in few_steps.MODELS}
    assert asked["toy_distill"]["data"].teacher == "runs/toy_reflow_cut"
    assert asked["toy_consistency_distillation"]["teacher"] == "runs/toy_flow_cut"
    assert asked["toy_consistency"]["loss"].doubling == 800 * few_steps.STEPS // 4000
    assert {changes["steps"] for changes in asked.values()} == {few_steps.STEPS}
