"""Every sequence experiment takes steps, is measured and drawn; the figures, from untrained or tiny runs."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from data.digits import Digits
from data.pairs import GeneratedPairs
from data.tasks import Adding, Reversal
from models.regressor import SequenceRegressor
from models.rnn import RNN
from reproductions import attention_maps, char_models, decode_time, gradient_through_time
from reproductions.reproduction import in_table
from tests.conftest import tiers
from tests.test_reproduce import untrained
from training.cli import load_experiment
from training.errors import UserError
from training.loop import train
from training.plan import Plan

NAMES = ("char_rnn", "char_lstm", "char_gru", "char_transformer", "adding_rnn", "copy_transformer")
MORE = ("transformer_translate", "pixel_lstm", "pixel_transformer")


@pytest.mark.parametrize("name", tiers([*NAMES, *MORE], first=("adding_rnn",)))
def test_it_trains_is_measured_and_drawn(name, tmp_path):
    experiment = load_experiment(name, tiny=True)
    mesh = replace(experiment.mesh, data=1)
    steps = min(experiment.steps, 4)
    every = 0 if name == "adding_rnn" else steps  # a regressor draws nothing
    summary = train(replace(experiment, steps=steps, mesh=mesh, sample_every=every, log_every=1), tmp_path)
    assert math.isfinite(summary["loss"])
    expected = {"char": "perplexity", "adding": "squared_error", "pixel": "bits_per_dim_given_label"}
    assert math.isfinite(summary[expected.get(name.split("_")[0], "exact_match")])
    drawn = list((tmp_path / "samples").glob("*")) if (tmp_path / "samples").exists() else []
    assert [path.suffix for path in drawn] == {"pixel": [".png"], "adding": []}.get(name.split("_")[0], [".txt"])


@pytest.mark.parametrize(("name", "preset"), [("char_transformer", "nanogpt_cpu"), ("transformer_translate", "base")])
def test_a_preset_is_another_form(name, preset):
    experiment = load_experiment(name, preset=preset)
    assert experiment != load_experiment(name)
    shapes = jax.eval_shape(
        replace(experiment.model, vocabulary=65).init,
        jax.random.key(0),
        {"source": jnp.zeros((1, 4), jnp.int32), "x": jnp.zeros((1, 4), jnp.int32)},
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == {"nanogpt_cpu": 804_096, "base": 44_172_288}[preset]


@pytest.mark.thorough
def test_one_device_equals_eight():
    """A carried state is split over devices as the batch is."""
    experiment = load_experiment("char_lstm", tiny=True)
    plans = [Plan(replace(experiment, mesh=replace(experiment.mesh, data=n))) for n in (1, 8)]
    losses = []
    for plan in plans:
        state = plan.initial()
        for i in range(3):
            state, metrics = plan.train_step(state, plan.batches[i])
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_streams_and_a_carried_state_belong_together():
    experiment = load_experiment("char_lstm", tiny=True)
    for wrong in (
        replace(experiment, batch_size=16),
        replace(experiment, data=replace(experiment.data, streams=0)),
        replace(experiment, accumulate=2),
    ):
        with pytest.raises(UserError, match="carried along streams"):
            Plan(replace(wrong, mesh=replace(wrong.mesh, data=1)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("adding_rnn", {"sample_every": 10}, "draws no samples: sample_every must be 0"),
        ("adding_rnn", {"data": Reversal()}, r"reads vectors over time \[B, T, F\]"),
        ("transformer_translate", {"data": Reversal()}, "learn from pairs, and this data has no source"),
        ("copy_transformer", {"data": Digits()}, "neither it nor its data says how many there are"),
        ("copy_transformer", {"data": GeneratedPairs()}, "a model --model.from-start"),
    ],
)
def test_what_does_not_belong_together(name, changes, message):
    experiment = load_experiment(name, tiny=True)
    with pytest.raises(UserError, match=message):
        Plan(replace(experiment, mesh=replace(experiment.mesh, data=1), **changes))


@pytest.mark.thorough
def test_how_far_a_gradient_reaches():
    """By the definition: from each state on, the rest is run by itself."""
    model = SequenceRegressor(backbone=RNN(width=4))
    x = jnp.asarray(Adding(length=6).arrays("test", 2)["x"])
    variables = model.init(jax.random.key(0), {"x": x})
    found = gradient_through_time.reach(model, variables, x)
    params = {"params": variables["params"]["backbone"]}
    for t in (1, 3, 5):
        _, state = model.backbone.apply(params, x[:, :t])

        def rest(h, state=state, t=t):
            _, last = model.backbone.apply(params, x[:, t:], {**state, "h": h})
            return jnp.sum(model.answer(variables, last["h"][-1]))

        norms = jnp.linalg.norm(jax.grad(rest)(state["h"])[-1], axis=-1)
        np.testing.assert_allclose(found[t - 1], norms.mean(), rtol=1e-5)


def test_gradients_through_time(monkeypatch):
    run = untrained(load_experiment("adding_rnn", tiny=True))
    monkeypatch.setattr(gradient_through_time, "made", lambda *_, **__: None)
    monkeypatch.setattr(gradient_through_time, "read", lambda _: run)
    small = {"LENGTH": {"tiny": 12}, "EXAMPLES": 4, "LAGS": {"tiny": (2, 10)}, "CELLS": {"lstm": RNN}}
    for name, value in small.items():
        monkeypatch.setattr(gradient_through_time, name, value)
    rows = list(gradient_through_time.rows("tiny", None))
    assert [row["when"] for row in rows] == ["at the start", "trained"]
    assert rows[0]["norms"][0] == 1.0
    gradient_through_time.draw(rows, Figure())
    assert "at 10" in "\n".join(gradient_through_time.summary(rows))
    assert "lag 10 over" in gradient_through_time.headline(rows)


@pytest.mark.thorough
def test_maps_of_attention():
    run = untrained(load_experiment("transformer_translate", tiny=True))
    rows = list(attention_maps.rows("tiny", run))
    assert len(rows) == 2  # of one layer
    for row in rows:
        assert row["weights"].shape == (len(row["target"]), len(row["source"]))
        np.testing.assert_allclose(row["weights"].sum(axis=1), 1.0, rtol=1e-5)  # none of it on padding
    attention_maps.draw(rows, Figure())
    assert "layer 1" in attention_maps.headline(rows)


@pytest.mark.thorough
def test_what_is_looked_at_is_what_is_read():
    """The decoder walked layer by layer, as for the picture, is the decoder."""
    run = untrained(load_experiment("transformer_translate", tiny=True))
    batch = {name: jnp.asarray(value) for name, value in run.experiment.data.arrays("test", 3).items()}
    memory = run.model.encode(run.variables, batch)
    decoder, params = run.model.decoder, {"params": run.variables["params"]["decoder"]}
    h = run.model.embed(run.variables, batch["x"])
    whole = decoder.apply(params, h, None, None, False, memory, batch["source_length"])[0]
    shown = jnp.arange(memory.shape[1])[None, None, :] < batch["source_length"][:, None, None]
    first = jax.tree.map(lambda leaf: leaf[0], params["params"]["layers"]["blocks"])
    block = decoder._block()
    after, _ = block.apply({"params": first}, decoder._placed(h, 0), memory, shown, method="looks")
    np.testing.assert_allclose(after, whole, atol=1e-5)  # the tiny form has one layer


@pytest.mark.thorough
def test_curves_of_the_four(monkeypatch):
    for name, value in {
        "TINY": True,
        "PART": 1.0,
        "TIMES": {"tiny": 2},
        "WINDOWS": 8,
        "ALL": {"tiny": 8},
        "NAMES": ("char_gru", "char_transformer"),
    }.items():
        monkeypatch.setattr(char_models, name, value)
    rows = list(char_models.rows("tiny", None))
    assert all(len(row["times"]) == len(row["losses"]) >= 2 for row in rows)
    assert all(np.all(np.diff(row["times"]) > 0) for row in rows)
    assert set(in_table(rows[0])) == {"experiment", "seconds", "nats", "bits per character", "perplexity"}
    char_models.draw(rows, Figure())
    assert "writes" in next(char_models.summary(rows))
    assert char_models.headline(rows).startswith("gru ")


@pytest.mark.thorough
def test_the_cost_of_a_place(monkeypatch):
    for name, value in {"PLACES": {"tiny": (4, 8)}, "ROUNDS": 2, "CACHE": 9}.items():
        monkeypatch.setattr(decode_time, name, value)
    rows = list(decode_time.rows("tiny", None))
    assert [row["place"] for row in rows] == [4, 8, 4, 8]
    assert all(row["ms, from its state"] > 0 for row in rows)
    decode_time.draw(rows, Figure())
    assert "place 8" in decode_time.headline(rows)
