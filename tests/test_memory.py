"""What a step needs is known before it runs; what is chosen fits, and nothing that costs less does."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from experiments.char_gru import tiny as char_gru
from experiments.char_transformer import tiny as char_transformer
from experiments.digits_ddpm import tiny as digits
from experiments.glow_digits import tiny as glow
from experiments.toy_flow import tiny as toy
from experiments.toy_meanflow import tiny as meanflow
from models.concatsquash import ConcatSquash
from models.denoiser import Denoiser
from models.flows.conditioners import MLPConditioner
from models.flows.glow import Glow
from models.mlp import MLP
from models.transformer import Transformer
from models.unet import UNet
from tests.conftest import tiers
from training import memory
from training.errors import UserError
from training.fit import fitted, limit_of, table, take_wishes
from training.memory import Planner, available, parse_size, shown
from training.mesh import Mesh
from training.plan import Plan
from training.run import Run

COMMON = {"batch_size": 64, "mesh": Mesh(data=1), "metrics": (), "sample_every": 0}
DEEP = {
    "unet": replace(
        digits,
        model=Denoiser(net=UNet(width=8, multipliers=(1,), blocks=1, attention=()), path=digits.model.path),
        **COMMON,
    ),
    "transformer": replace(
        char_transformer,
        model=replace(char_transformer.model, backbone=Transformer(width=16, depth=8, heads=2, context=16)),
        **COMMON,
    ),
    "glow": replace(
        glow,
        model=replace(
            glow.model, bijection=Glow(levels=2, steps=8, conditioner=MLPConditioner(width=32, num_classes=10))
        ),
        **COMMON,
    ),
}


@pytest.fixture(scope="module", params=tiers(list(DEEP), first=("transformer",)))
def planner(request):
    return Planner(DEEP[request.param])


@pytest.mark.thorough
def test_what_is_chosen_fits_and_what_is_cheaper_does_not(planner, monkeypatch):
    monkeypatch.setattr(memory, "CANDIDATES", ("none", "reversible", "full", "nested"))
    needs = planner.table()
    assert needs[0].remat == "none"
    assert [need.flops for need in needs] == sorted(need.flops for need in needs)
    assert len(needs) == (4 if isinstance(getattr(planner.experiment.model, "bijection", None), Glow) else 3)
    for limit in sorted({need.peak for need in needs} | {2**40}):
        chosen = planner.choose(limit)
        assert chosen.peak <= limit
        assert all(need.peak > limit for need in needs if need.flops < chosen.flops)
    assert planner.choose(2**40).remat == "none"
    least = min(need.peak for need in needs)
    with pytest.raises(
        UserError, match=r"no policy fits into .* needs the least, takes .* too much.*--batch-size, now 64"
    ):
        planner.choose(least - 1)


@pytest.mark.thorough
def test_the_peak_is_what_the_run_is_compiled_to(planner):
    need = planner.need("full")
    plan = Plan(replace(planner.experiment, remat="full"))
    found = plan.train_step.lower(plan.state_like, plan.batch_like).compile().memory_analysis()
    peak = (
        found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
    )
    assert need.peak == peak
    assert need.peak > planner.state > 0
    assert need.flops > planner.need("none").flops


@pytest.mark.thorough
def test_the_largest_batch_fits_and_a_larger_one_does_not(monkeypatch):
    """From two examples, where the need is the state and does not grow, to more than a hundred."""
    net = MLP(width=256, depth=1)
    flat = replace(toy, model=replace(toy.model, net=net), batch_size=2, mesh=Mesh(data=1))
    planner = Planner(flat)
    limit = round(1.02 * planner.need("none").peak)
    size = planner.largest_batch("none", limit)
    assert size > 100
    assert planner.need("none", size).peak <= limit < planner.need("none", size + 1 + size // 16).peak
    assert planner.largest_batch("none", planner.state) == 0
    # No larger than the data, and in whole runs of a class.
    planner.examples, planner.unit = 30, 4
    monkeypatch.setattr(planner, "_compiled", lambda lowered: (0, 0))
    assert planner.largest_batch("none", limit) == 28


@pytest.mark.thorough
def test_over_devices_a_need_is_that_of_one():
    """The batch is split: eight devices hold an eighth of the activations each."""
    one, eight = (Planner(replace(DEEP["transformer"], mesh=Mesh(data=n))).need("none") for n in (1, 8))
    assert eight.temporary < 0.5 * one.temporary
    assert eight.flops == one.flops


@pytest.mark.thorough
def test_needs_are_remembered(tmp_path, monkeypatch):
    first = Planner(digits, tmp_path).need("full")
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    assert Planner(digits, tmp_path).need("full") == first
    with pytest.raises(TypeError):  # another batch is another program
        Planner(replace(digits, batch_size=16), tmp_path).need("full")


@pytest.mark.thorough
def test_a_plan_without_forward_mode_is_left_out():
    """MeanFlow differentiates its network forwards."""
    planner = Planner(meanflow)
    assert {need.remat for need in planner.table()} == {"none", "dots", "full", "sqrt", "group(2)", "group(4)"}
    with pytest.raises(UserError, match="no forward-mode derivative"):
        planner.largest_batch("nested", 2**30)
    with pytest.raises(UserError, match=r"no forward-mode derivative.*remat=nested\); full, group\(k\), sqrt"):
        Plan(replace(meanflow, remat="nested"))


def test_what_is_wrong_whatever_the_policy_is_said():
    with pytest.raises(UserError, match="does not divide"):
        Planner(replace(digits, batch_size=9))


@pytest.mark.parametrize(
    ("text", "size"), [("12GiB", 12 * 2**30), ("800MB", 800e6), ("1e9", 1e9), ("1.5 KiB", 1536), ("7", 7), ("5gb", 5e9)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_sizes_that_are_none():
    for text in ("", "twelve", "12GiG", "GiB", "-3", "0"):
        with pytest.raises(UserError, match="say a size such as 12GiB"):
            parse_size(text)
    assert [shown(size) for size in (900, 1536, 3 * 2**30, 5000 * 2**30)] == [
        "900 B",
        "1.5 KiB",
        "3.0 GiB",
        "5000.0 GiB",
    ]


def test_the_limit_is_what_the_device_has_free(monkeypatch):
    assert 0 < available()[0] < 2**50
    told = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 300}, device_kind="H100")
    monkeypatch.setattr(jax, "local_devices", lambda: [told])
    assert limit_of(take_wishes(["--plan-memory"])) == (700, "what H100 has free")
    assert limit_of(take_wishes(["--plan-memory", "--memory-limit", "2KiB"]))[0] == 2048


@pytest.mark.thorough
def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "CANDIDATES", ("none", "full"))
    arguments = ["--remat", "auto", "--steps", "3", "--memory-limit=1GiB"]
    wishes = take_wishes(arguments)
    assert arguments == ["--steps", "3"]
    assert fitted(digits, tmp_path, False, wishes).remat == "none"
    assert "remat=none: " in capsys.readouterr().out
    # A run that is resumed keeps what it has.
    Run(tmp_path).open(replace(digits, remat="full"), False)
    assert fitted(digits, tmp_path, False, wishes).remat == "full"
    assert fitted(digits, tmp_path, True, wishes).remat == "none"
    with pytest.raises(UserError, match="say one of them"):
        take_wishes(["--remat=auto", "--batch-size", "auto"])
    with pytest.raises(UserError, match="--memory-limit goes with"):
        take_wishes(["--memory-limit", "1GiB"])
    rest = ["--remat", "full", "--batch_size", "12"]
    assert not take_wishes(rest)
    assert rest == ["--remat", "full", "--batch_size", "12"]
    with pytest.raises(UserError, match="not even a batch of 8 fits"):
        fitted(digits, tmp_path / "new", False, take_wishes(["--batch-size", "auto", "--memory-limit", "1KiB"]))


@pytest.mark.thorough
def test_the_table(monkeypatch):
    monkeypatch.setattr(memory, "CANDIDATES", ("none", "full"))
    said = lambda experiment, limit: list(  # noqa: E731
        table(experiment, "mine", take_wishes(["--plan-memory", "--memory-limit", limit]))
    )
    lines = said(digits, "1GiB")
    assert [line.split()[0] for line in lines[4:6]] == ["none", "full"]
    assert "%" in lines[5]
    assert lines[6:] == ["--remat auto takes none"]
    assert said(digits, "1KiB")[6:] == ["none of them fits: a smaller --batch-size, or --accumulate"]
    no_chain = replace(toy, model=replace(toy.model, net=ConcatSquash(width=8)))
    assert "no chain of equal steps" in said(no_chain, "1GiB")[6]


def test_a_batch_that_is_not_for_choosing(tmp_path):
    with pytest.raises(UserError, match="the batch is the data's 8 streams"):
        fitted(char_gru, tmp_path, False, take_wishes(["--batch-size", "auto", "--memory-limit", "1GiB"]))
