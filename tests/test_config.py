"""Configuration: JSON there and back, names, choices on the command line, and what mistakes are told."""

import importlib
import json
from dataclasses import dataclass, replace

import pytest

from data.images import TFDS
from data.toys import EightGaussians
from experiments.digits_ddpm import experiment as digits
from losses.fused_head import HeadSGD
from losses.weighting import MinSNR
from models.unet import UNet
from paths.grids import Explicit, Karras
from paths.schedules import VP, Cosine
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from training import config
from training.cli import choices, experiment_names, load_experiment, load_module, parse
from training.errors import UserError

NAMES = sorted(experiment_names())


def cli(*arguments: str, default=digits):
    return parse(default, list(arguments), "train.py digits_ddpm")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["experiment", "tiny"])
def test_every_experiment_survives_json(name, form):
    experiment = getattr(importlib.import_module(f"experiments.{name}"), form)
    text = json.dumps(config.encode(experiment))
    assert config.decode(json.loads(text)) == experiment
    assert "0x" not in text


def test_every_experiment_says_in_one_line_what_it_is():
    for name, line in experiment_names().items():
        assert 20 < len(line) < 160, name
    assert set(NAMES) >= {"digits_ddpm", "toy_flow", "mnist_ddpm", "cifar10_ddpm"}


def test_plain_fields_are_set_with_dashes_or_underscores():
    changed = cli("--steps", "7", "--model.net.width", "32", "--loss.label-dropout", "0.1", "--batch_size", "64")
    assert (changed.steps, changed.model.net.width, changed.batch_size) == (7, 32, 64)
    assert changed.loss.label_dropout == 0.1
    assert cli() == digits


def test_objects_are_chosen_by_name_and_then_set():
    changed = cli(
        *(
            "--model.path",
            "vp",
            "--model.path.beta-max",
            "12",
            "--loss.weighting=min_snr",
            "--loss.weighting.gamma",
            "3",
        ),
        *("--sampler.solver", "ddpm", "--sampler.grid", "karras", "--data", "eight_gaussians", "--model.net", "unet"),
    )
    assert changed.model.path == VP(beta_max=12.0)
    assert changed.loss.weighting == MinSNR(gamma=3.0)
    assert (changed.sampler.solver, changed.sampler.grid) == (DDPM(), Karras())
    assert changed.data == EightGaussians()
    assert isinstance(changed.model.net, UNet)
    assert cli("--model.path", "Cosine").model.path == Cosine()
    chosen = cli("--data", "tfds", "--seed", "3", "--data.name", "cifar10", "--data.flip")
    assert (chosen.data, chosen.seed) == (TFDS(name="cifar10", flip=True), 3)
    assert cli("--sampler.grid", "explicit", "--sampler.grid.at", "0.9", "0.5").sampler.grid == Explicit(at=(0.9, 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.path", "vpp"), r"--model.path vpp: no Path of that name; did you mean vp"),
        (("--sampler.solver", "dim"), r"no Solver of that name; did you mean ddim"),
        (("--sampler", "heun"), r"--sampler heun: did you mean --sampler.solver heun\?"),
        (("--model", "cosine"), r"--model cosine: did you mean --model.path cosine\?"),
        (("--lr", "3e-4"), r"there is no --lr; did you mean --optimizer.learning-rate\?"),
        (("--nfe=10",), r"there is no --nfe; did you mean --sampler.steps\?"),
        (("--data", "digit"), r"no Dataset of that name; did you mean digits"),
        (("--data", "tfds"), r"--data tfds needs --data.name, after it"),
        (("--loss.weighting",), r"no Weighting of that name; there are edm, likelihood, min_snr, p2, sigmoid, uniform"),
    ],
)
def test_wrong_choices_name_the_near_ones(arguments, message):
    with pytest.raises(UserError, match=message):
        cli(*arguments)


def test_a_setting_by_its_name_elsewhere_is_told_its_name_here():
    with pytest.raises(UserError, match=r"there is no --nfe; did you mean --steps\?"):
        parse(digits.sampler, ["--nfe", "10"], "sample.py")
    with pytest.raises(SystemExit):  # what has no such setting is not sent to one
        parse(VP(), ["--nfe", "10"], "--model.path")


def test_what_may_be_none_is_chosen_by_name_and_taken_away_by_none():
    arcface, partial = (load_experiment(name) for name in ("margin_omniglot_arcface", "partial_fc_synthetic"))
    found = parse(arcface, ["--loss.update", "head_sgd", "--loss.update.momentum", "0.5"], "train.py")
    assert found == replace(arcface, loss=replace(arcface.loss, update=HeadSGD(momentum=0.5)))
    assert parse(partial, ["--loss.update.momentum", "0.5"], "train.py").loss.update.learning_rate == 1.0
    assert parse(partial, ["--loss.update=none"], "train.py").loss.update is None
    with pytest.raises(UserError, match=r"--loss\.update sgd: no HeadSGD of that name; did you mean head_sgd"):
        parse(arcface, ["--loss.update", "sgd"], "train.py")
    with pytest.raises(UserError, match="--loss none"):  # what may not be
        parse(arcface, ["--loss", "none"], "train.py")


def test_help_names_what_there_is_to_choose_and_what_is_chosen():
    told = dict(line.split(maxsplit=1) for line in choices(cli("--sampler.solver", "ddpm")))
    assert told["--sampler.solver"].split(", ")[:2] == ["ddim", "[ddpm]"]
    assert told["--loss-scaling"] == "dynamic, [none]"
    assert "[two_sample_accuracy]" in told["--metrics.0"]
    assert told["--metrics.1"] == "[frechet_distance], or another of the above"


def test_wrong_fields_name_the_near_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        cli("--model.net.widht", "3")
    assert stop.value.code == 2
    assert "--model.net.width" in capsys.readouterr().err


def test_impossible_values_are_told_why(capsys):
    with pytest.raises(SystemExit) as stop:
        cli("--ema", "1.5")
    assert stop.value.code == 2
    assert "ema=1.5 is not in [0, 1)" in capsys.readouterr().err


def test_wrong_experiments_name_the_near_ones(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no experiment 'digit_ddpm'; did you mean digits_ddpm"):
        load_module("digit_ddpm")
    with pytest.raises(UserError, match="there is no file"):
        load_module(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"there is no file .*/emty\.py; did you mean .*/empty\.py\?"):
        load_module(str(tmp_path / "emty.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no experiment 'empty'; did you mean empty\.py\?"):
        load_module("empty")
    with pytest.raises(UserError, match="defines no `experiment = Experiment"):
        load_module(str(tmp_path / "empty.py"))


def test_an_experiment_of_ones_own_with_a_class_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass, replace\n"
        "from experiments.digits_ddpm import tiny as small\n"
        "from samplers.ddim import DDIM\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Half(DDIM):\n    factor: float = 0.5\n"
        "experiment = replace(small, sampler=replace(small.sampler, solver=Half()))\n"
    )
    experiment = load_experiment(str(file))
    with pytest.raises(UserError, match="defines no `tiny"):
        load_experiment(str(file), tiny=True)
    encoded = config.encode(experiment)
    assert encoded["sampler"]["solver"] == {"type": "mine.Half", "eta": 0.0, "hat": False, "factor": 0.5}
    assert config.decode(encoded) == experiment
    assert type(cli("--sampler.solver", "half", default=experiment).sampler.solver).__name__ == "Half"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "os.system"}, "no dataclass 'os.system' is known here"),
        ({"type": None}, "no dataclass None"),
        ({"stepz": 3}, "experiment.Experiment has no field 'stepz'; did you mean steps"),
        ({"steps": "many"}, "config.steps: 'many' is not a int"),
        ({"steps": 1.5}, "config.steps: 1.5 is not a int"),
        ({"precision": "float8"}, "config.precision: 'float8' is not a Literal"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"metrics": [3]}, "config.metrics"),
        ({"model": {"type": "ddim.DDIM", "eta": 0.0}}, "config.model: .* is not a Model"),
    ],
)
def test_a_configuration_is_validated(change, message):
    with pytest.raises(UserError, match=message):
        config.decode(config.encode(digits) | change)


def test_what_is_no_configuration_is_refused():
    @dataclass(frozen=True)
    class Holder:
        value: object

    with pytest.raises(UserError, match="cannot be part of a configuration"):
        config.encode(Holder(lambda: None))


def test_differences_name_every_field():
    other = replace(digits, seed=1, sampler=replace(digits.sampler, solver=DDIM(eta=0.5)))
    lines = config.differences(config.encode(digits), config.encode(other))
    assert lines == ["sampler.solver.eta: 0.0 in the run, 0.5 asked for", "seed: 0 in the run, 1 asked for"]
    swapped = replace(digits, model=replace(digits.model, path=VP()))
    assert config.differences(config.encode(digits), config.encode(swapped)) == [
        "model.path: schedules.DDPMLinear in the run, schedules.VP asked for"
    ]
    assert config.differences(config.encode(digits), config.encode(digits)) == []


def test_names_on_the_command_line_are_the_fields():
    from paths.path import Path
    from samplers.kernel import Kernel

    assert set(config.options(Kernel)) >= {"ddim", "ddpm"}
    assert set(config.options(Path)) >= {"vp", "sub_vp", "ve", "cosine", "edm", "rectified", "ddpm_linear"}
    assert "multistep" not in config.options(Kernel)
