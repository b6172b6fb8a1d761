"""evaluate.py as a user runs it: numbers printed and stored with their settings, mistakes in one clear line."""

import json
import shutil
from pathlib import Path

import pytest

from tests.scripts import finish, here
from tests.test_scripts import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert here("train.py", *TINY, "--sample-every", "0", "--workdir", str(folder))[0] == 0
    return folder


def numbers_of(out: str) -> dict[str, float]:
    lines = [line.split("  ") for line in out.splitlines() if "  " in line]
    return {name: float(value) for name, value in lines}


SMALL = ("--examples", "12", "--batch-size", "8", "--integrator", "fixed_step", "--integrator.steps", "6")


def evaluate(*arguments: str) -> tuple[int, str]:
    """The script in this process: exit status, and all that it wrote."""
    code, out, err = here("evaluate.py", *arguments)
    return code, out + err


def test_numbers_are_printed_and_stored_with_their_settings(run):
    code, out, _ = finish("evaluate.py", str(run), "likelihood", *SMALL, "--trace.probes", "2")
    assert code == 0
    assert f"step 20 of {run}" in out
    alone = numbers_of(out)
    assert alone["likelihood_nfe"] == 24
    assert 0 < alone["bits_per_dim"] < 50
    code, out = evaluate(str(run), "vlb", "--examples", "12", "--steps", "10", "--variance", "beta")
    assert code == 0
    assert numbers_of(out)["vlb_nfe"] == 10

    rows = json.loads((run / "evaluation.json").read_text())
    assert [row["metric"]["type"] for row in rows] == ["likelihood.Likelihood", "vlb.VLB"]
    assert all(row["step"] == 20 for row in rows)
    settings = rows[0]["metric"]
    assert (settings["examples"], settings["integrator"]["steps"], settings["trace"]["probes"]) == (12, 6, 2)
    assert rows[0]["numbers"]["bits_per_dim"] == pytest.approx(alone["bits_per_dim"], rel=1e-4)


@pytest.mark.thorough
def test_the_runs_own_metrics_come_out_again_and_eight_devices_change_no_number(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    (run / "evaluation.json").unlink(missing_ok=True)
    code, out = evaluate(str(run))  # as at the end of training
    assert code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert numbers_of(out)["two_sample_accuracy"] == pytest.approx(summary["two_sample_accuracy"])
    of_one = numbers_of(finish("evaluate.py", str(run), "likelihood", *SMALL, "--trace.probes", "2")[1])
    of_eight = numbers_of(evaluate(str(run), "likelihood", *SMALL, "--trace.probes", "2")[1])
    assert of_eight == pytest.approx(of_one, rel=1e-4)
    rows = json.loads((run / "evaluation.json").read_text())
    assert [row["metric"]["type"] for row in rows] == ["neighbours.TwoSampleAccuracy", "likelihood.Likelihood"]


MISTAKES = {
    "metric": (
        ("likelihod",),
        "there is no metric 'likelihod'; did you mean likelihood or flow_likelihood or token_likelihood?",
    ),
    "another name": (("fid",), "there is no metric 'fid'; that is frechet_distance here"),
    "member": (("likelihood", "--trace", "hutchinsn"), "did you mean hutchinson?"),
    "integrator": (("likelihood", "--integrator", "rk4"), "no Integrator of that name; there are adaptive, fixed_step"),
    "flag": (("likelihood", "--exampels", "3"), "--examples"),
    "value": (("likelihood", "--examples", "1"), "examples must be at least 2"),
    "probes": (("likelihood", "--trace.probes", "0"), "at least 1 probe, got probes=0"),
    "no metric": (("--examples", "3"), "--examples: settings are a metric's; name it first"),
    "samples": (("frechet_distance", "--samples", "9"), "needs samples=65 or more, got 9"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_clear_message_and_exit_status_2(run, arguments, message):
    code, out = evaluate(str(run), *arguments)
    assert code == 2
    assert message in out
    assert "Traceback" not in out


def test_no_run_and_a_damaged_file(run, tmp_path):
    assert evaluate("nowhere") == (
        2,
        "error: nowhere holds no run (there is no nowhere/config.json)\n",
    )
    assert "name the run's folder first" in evaluate("--trace", "exact")[1]
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "evaluation.json").write_text("{")
    code, out = evaluate(str(tmp_path))
    assert (code, "is not a list of evaluations" in out) == (2, True)


def test_list_and_help_read_well(run):
    code, out = evaluate("--list")
    assert code == 0
    assert "likelihood" in out
    assert "Bits/dim of held-out data by the probability-flow ODE" in out
    for asked in ((), ("--help",), (str(run), "--help")):
        assert evaluate(*asked)[1].startswith("usage: python evaluate.py RUN [METRIC]")
    code, out = evaluate(str(run), "likelihood", "--help")
    assert code == 0
    for words in ("--examples", "--trace.probes", "--integrator.rtol", "[adaptive], fixed_step", "exact, [hutchinson]"):
        assert words in out, words
