"""Masked models: the bound is that of all orders, and what is drawn is what the bound is of."""

import functools
import itertools
import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tasks import Reversal
from experiments import pixel_masked
from losses.masked import MaskedTokens, bound_of_mask, log_prob_bounds, mask_counts, masked_nats
from metrics.masked_likelihood import MaskedLikelihood
from metrics.metric import Evaluation
from models.language_model import LanguageModel
from models.masked import MaskedModel, lowest
from models.rnn import GRU
from models.transformer import Transformer
from samplers.masked import MaskedDecoding
from samplers.sampler import Sampler, sample_keys
from tests.conftest import tiers
from tests.flows import perturbed
from training import config
from training.cli import load_experiment
from training.errors import UserError
from training.plan import Plan

V, T = 5, 6
NET = Transformer(width=8, heads=2, depth=1, bidirectional=True)
MODELS = {
    "transformer": MaskedModel(backbone=NET, vocabulary=V),
    "classes": MaskedModel(
        backbone=NET.clone(positions="learned", context=T + 1, dropout=0.1), vocabulary=V, num_classes=3
    ),
    "gru": MaskedModel(backbone=GRU(width=8, bidirectional=True), vocabulary=V, num_classes=3),
}
each = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
KEYS = jax.random.split(jax.random.key(5), 4)


@functools.cache
def case(model, size=4, steps=T):
    """(variables, batch): tokens and classes; no parameter at its start."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, model.tokens, (size, steps)), jnp.int32)
    batch = {"x": x, "label": jnp.arange(size) % 3}
    params = jax.jit(lambda: perturbed(model.init(jax.random.key(0), batch)["params"], jax.random.key(1), 0.5))()
    return {"params": params, "state": {}}, batch


def near(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@dataclass(frozen=True, kw_only=True)
class Watched(MaskedModel):
    """Has an answer for every count of masked tokens; keeps it and what it was asked."""

    seen: list = field(default_factory=list, compare=False)

    def logits(self, variables, tokens, masked, condition=None, key=None):
        every = jax.random.normal(jax.random.key(2), (T + 1, T, V))
        z = every[jnp.sum(masked, axis=1)]
        keep = lambda *found: self.seen.append([np.asarray(of) for of in found])  # noqa: E731
        jax.debug.callback(keep, tokens, masked, (condition or {"label": 0})["label"], z, ordered=True)
        return z


@dataclass(frozen=True, kw_only=True)
class Echo(MaskedModel):
    """Says the first token that is shown, or anything where there is none."""

    def logits(self, variables, tokens, masked, condition=None, key=None):
        shown = jnp.take_along_axis(tokens, jnp.argmin(masked, axis=1)[:, None], axis=1)[:, 0]
        z = jnp.where(jnp.all(masked, axis=1)[:, None], 0.0, 40.0 * jax.nn.one_hot(shown, self.tokens))
        return jnp.broadcast_to(z[:, None], (*tokens.shape, self.tokens))


@each
def test_what_is_masked_is_not_seen_and_what_is_shown_is(model):
    variables, batch = case(model)
    logits = jax.jit(model.logits)
    masked = jnp.asarray([[True, False, True, True, False, True]] * 4)
    z = logits(variables, batch["x"], masked, batch)
    assert z.shape == (4, T, V)
    assert z.dtype == jnp.float32
    np.testing.assert_array_equal(logits(variables, jnp.where(masked, 0, batch["x"]), masked, batch), z)
    for place in (1, 4):
        other = logits(variables, batch["x"].at[:, place].set((batch["x"][:, place] + 1) % V), masked, batch)
        assert (jnp.max(jnp.abs(other - z), axis=2)[:, [0, 2, 3, 5]] > 1e-4).all()
    for token in range(V):  # the mask is none of the tokens
        other = logits(variables, batch["x"].at[:, 0].set(token), masked.at[:, 0].set(False), batch)
        assert float(jnp.abs(other - z).max()) > 1e-3


def test_a_class_is_told():
    model = MODELS["classes"]
    variables, batch = case(model)
    masked = jnp.ones((4, T), bool)
    by = jax.jit(lambda label, key=None: model.logits(variables, batch["x"], masked, {"label": label}, key))
    told = [by(jnp.full((4,), label)) for label in (0, 1, 2, -1)]
    for a, b in itertools.combinations(told, 2):
        assert float(jnp.abs(a - b).max()) > 1e-2
    np.testing.assert_array_equal(told[3], jax.jit(model.logits)(variables, batch["x"], masked))
    assert float(jnp.abs(by(batch["label"]) - by(batch["label"], KEYS[0])).max()) > 1e-3  # dropout


def test_every_class_has_its_own_row_and_so_has_the_mask():
    """Of the rows behind the vocabulary's: the mask's, three classes', and that of no class."""
    model = MODELS["gru"]
    variables, batch = case(model)
    embedding = variables["params"]["embedding"]
    label = jnp.asarray([0, 1, 2, -1])

    @jax.jit
    def logits(row, masked):
        table = embedding["table"].at[row].add(1.0)
        params = {**variables["params"], "embedding": {**embedding, "table": table}}
        return model.logits({"params": params, "state": {}}, batch["x"], masked, {"label": label})

    shown, masked = jnp.zeros((4, T), bool), jnp.zeros((4, T), bool).at[1, 2].set(True)
    changed = lambda row, m: (jnp.abs(logits(row, m) - logits(99, m)).max(axis=(1, 2)) > 1e-4).tolist()  # noqa: E731
    assert embedding["table"].shape[0] == V + 5
    assert changed(V, shown) == [False] * 4
    assert changed(V, masked) == [False, True, False, False]
    assert [changed(V + 1 + i, shown) for i in range(4)] == np.eye(4, dtype=bool).tolist()


def test_logits_stand_where_their_tokens_do():
    """A network without positions cannot tell places apart: what is moved is answered as it was."""
    model = replace(MODELS["classes"], backbone=NET.clone(positions="none"))
    variables, batch = case(model)
    masked, order = jnp.asarray([[True, False, True, False, False, False]] * 4), jnp.asarray([4, 0, 3, 5, 1, 2])
    logits = jax.jit(model.logits)
    z = logits(variables, batch["x"], masked, batch)
    near(logits(variables, batch["x"][:, order], masked[:, order], batch), z[:, order])


def test_how_many_are_masked():
    u = (jnp.arange(400) + 0.5) / 400
    maskgit, uniform = (np.asarray(mask_counts(u, 10, weighting)) for weighting in ("maskgit", "likelihood"))
    np.testing.assert_array_equal(maskgit, np.ceil(10 * np.cos(np.pi / 2 * np.asarray(u))))
    np.testing.assert_array_equal(np.bincount(uniform, minlength=11)[1:], 40)
    ends = jnp.asarray([0.0, 1.0 - 2.0**-24])
    np.testing.assert_array_equal(mask_counts(ends, 10, "maskgit"), [10, 1])
    np.testing.assert_array_equal(mask_counts(ends, 10, "likelihood"), [1, 10])
    found = lowest(jnp.asarray([[3.0, 1.0, 1.0, jnp.inf], [0.0, 0.0, 0.0, 0.0]]), jnp.asarray([2, 3]))
    np.testing.assert_array_equal(found, [[False, True, True, False], [True, True, True, False]])


TINY = MaskedModel(backbone=NET, vocabulary=3, num_classes=3)
ORDERS = list(itertools.permutations(range(3)))
MASKS = [mask for mask in itertools.product((False, True), repeat=3) if any(mask)]


@functools.cache
def all_orders():
    """(variables, x, log-probabilities [27, 6]): of all sequences of three tokens of three, in all orders."""
    variables, _ = case(TINY, steps=3)
    x = jnp.asarray(list(itertools.product(range(3), repeat=3)), jnp.int32)
    logits = jax.jit(lambda masked: TINY.logits(variables, x, masked, {"label": jnp.ones(27, jnp.int32)}))
    logs = {mask: jax.nn.log_softmax(logits(jnp.asarray([mask] * 27))) for mask in MASKS}
    of = lambda order, i: logs[tuple(k in order[i:] for k in range(3))][np.arange(27), order[i], x[:, order[i]]]  # noqa: E731
    return variables, x, np.stack([sum(np.asarray(of(order, i)) for i in range(3)) for order in ORDERS], axis=1)


def test_the_bound_is_the_mean_over_all_orders():
    """Exactly, over all masks; in the mean, over keys. And it is a bound of a probability that adds up to one."""
    variables, x, log_probs = all_orders()
    label = jnp.ones(27, jnp.int32)
    near(np.exp(log_probs).sum(axis=0), 1.0)
    exact, joint = log_probs.mean(axis=1), np.log(np.exp(log_probs).mean(axis=1))
    assert (exact < joint).all()
    assert np.ptp(log_probs, axis=1).max() > 0.1  # orders differ
    one_mask = jax.jit(lambda m: bound_of_mask(masked_nats(TINY, variables, x, m, {"label": label})[0], m))
    expected = np.zeros(27)
    for mask in MASKS:
        expected += np.asarray(one_mask(jnp.asarray([mask] * 27))) / 3 / math.comb(3, sum(mask))
    near(-expected, exact)
    estimate = jax.jit(log_prob_bounds, static_argnums=(0, 4))
    batch, keys = (
        {"x": jnp.repeat(x[5:6], 4000, axis=0), "label": jnp.ones(4000, jnp.int32)},
        jax.random.split(KEYS[0], 4000),
    )
    errors = []
    for draws in (1, 3):
        found = np.asarray(estimate(TINY, variables, batch, keys, draws))
        errors.append(found.std() / 4000**0.5)
        assert abs(found.mean() - exact[5]) < 4 * errors[-1]
    assert 0 < errors[1] < errors[0] / 3**0.5  # each number of masked tokens once: better than three at random


def test_what_is_drawn_in_random_orders_is_what_the_bound_is_of():
    """One token a step, chosen by noise alone, 20,000 times."""
    variables, _, log_probs = all_orders()
    sampler = MaskedDecoding(steps=3, choice_temperature=1e6)
    condition = {"label": jnp.ones(20_000, jnp.int32)}
    draw = jax.jit(lambda keys: sampler(TINY, variables, keys, condition, (3,)).x)
    drawn = np.asarray(draw(jax.random.split(jax.random.key(3), 20_000)))
    found = np.bincount(drawn @ np.asarray([9, 3, 1]), minlength=27) / 20_000
    near(found, np.exp(log_probs).mean(axis=1), 0.012)
    assert np.exp(log_probs).mean(axis=1).max() > 0.1


@pytest.mark.parametrize("weighting", ["maskgit", "likelihood"])
def test_losses_are_what_they_say(weighting, key):
    model = Watched(vocabulary=V, num_classes=3)
    _, batch = case(MODELS["transformer"], size=T)
    loss = MaskedTokens(weighting=weighting, smoothing=0.1, label_dropout=1.0)
    objective = jax.jit(lambda: loss(model, {"state": {}}, key, batch, jnp.asarray(0)))()
    jax.effects_barrier()
    ((tokens, masked, label, z),) = model.seen
    np.testing.assert_array_equal(tokens, batch["x"])
    np.testing.assert_array_equal(label, -1)
    logs = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
    nats = -np.take_along_axis(logs, np.asarray(batch["x"])[:, :, None], axis=2)[:, :, 0]
    smoothed = 0.9 * nats - 0.1 * logs.mean(axis=2)
    if weighting == "maskgit":
        mean = lambda of: of[masked].mean()  # noqa: E731
    else:
        mean = lambda of: ((masked * of).sum(axis=1) / masked.sum(axis=1)).mean()  # noqa: E731
        assert sorted(masked.sum(axis=1)) == list(range(1, T + 1))  # as many examples as tokens: each number once
        near(jnp.mean(objective.metrics["bits_per_token_bound"]), mean(nats) / math.log(2))
    near(jnp.mean(objective.value), mean(smoothed))
    near(jnp.mean(objective.metrics["nats_per_token"]), mean(nats))
    assert len({tuple(row) for row in masked}) > 3  # places differ


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_how_many_stay_masked(schedule):
    for length, steps in [(64, 12), (7, 7), (12, 11), (12, 3), (256, 8), (1, 1), (10, 10)]:
        counts = MaskedDecoding(steps=steps, schedule=schedule).masked_after(length)
        part = np.arange(1, steps + 1) / steps
        share = np.cos(np.pi / 2 * part) if schedule == "cosine" else 1 - part
        assert counts[-1] == 0
        assert (np.diff([length, *counts]) < 0).all()
        if steps in (8, 12, 3):  # with many tokens a step
            np.testing.assert_array_equal(counts, np.floor(length * share + 1e-9))
        if steps == length:
            assert counts == list(range(length))[::-1]


@pytest.mark.parametrize(("steps", "choice"), [(T, 0.0), (3, 4.5)])
def test_what_is_fixed_stays_and_the_surest_are_fixed(steps, choice):
    model = Watched(vocabulary=V)
    sampler = MaskedDecoding(steps=steps, choice_temperature=choice)
    samples = jax.jit(lambda: sampler(model, {}, KEYS, None, (T,), True))()
    jax.effects_barrier()
    states = np.asarray(samples.trajectory)
    masks = np.asarray([masked for _, masked, _, _ in model.seen] + [np.zeros((4, T), bool)])
    assert states.shape == (steps, 4, T)
    assert masks[0].all()
    np.testing.assert_array_equal(masks.sum(axis=2)[1:], np.asarray(sampler.masked_after(T))[:, None] * [1, 1, 1, 1])
    assert (masks[1:] <= masks[:-1]).all()  # nested
    np.testing.assert_array_equal(states[-1], samples.x)
    fixed = np.broadcast_to(~masks[1:], states.shape)
    np.testing.assert_array_equal(states[fixed], np.broadcast_to(states[-1], states.shape)[fixed])
    surest = True
    for i, (_, _, _, z) in enumerate(model.seen):
        logs = np.take_along_axis(z, states[i][:, :, None], axis=2)[:, :, 0] - np.log(np.exp(z).sum(axis=2))
        for row, before, after in zip(logs, masks[i], masks[i + 1], strict=True):
            surest &= not after.any() or row[before & ~after].min() >= row[after].max()
    assert surest == (choice == 0.0)


@pytest.mark.parametrize("guidance", tiers([1.0, 1.5], first=(1.5,)))
def test_samples_are_a_matter_of_their_own_key(guidance):
    model = MODELS["classes"]
    variables, batch = case(model)
    condition = {"label": batch["label"]}
    sampler = MaskedDecoding(steps=3, guidance=guidance)
    draw = jax.jit(lambda keys, c: sampler(model, variables, keys, c, (T,)).x)
    x, order = draw(KEYS, condition), jnp.asarray([3, 1])
    np.testing.assert_array_equal(draw(KEYS[order], {"label": condition["label"][order]}), x[order])
    assert x.dtype == jnp.int32
    assert len({tuple(row) for row in np.asarray(x).tolist()}) > 1


def test_what_is_fixed_is_told_to_the_rest():
    draw = lambda steps: np.asarray(  # noqa: E731
        MaskedDecoding(steps=steps)(Echo(vocabulary=V), {}, jax.random.split(KEYS[0], 64), None, (T,)).x
    )
    x = draw(T)
    np.testing.assert_array_equal(x, np.repeat(x[:, :1], T, axis=1))
    assert set(x[:, 0]) == set(range(V))
    assert (draw(1) != draw(1)[:, :1]).any()  # all at once know nothing of each other


def test_guidance_goes_from_no_class_through_the_class():
    model = MODELS["classes"]
    variables, batch = case(model)
    condition, masked = {"label": batch["label"]}, jnp.ones((4, T), bool)
    logits, draw = jax.jit(model.logits), jax.jit(lambda of, c: of(model, variables, KEYS, c, (T,)).x, static_argnums=0)
    with_class, without = (logits(variables, batch["x"], masked, c) for c in (condition, None))
    found = draw(MaskedDecoding(steps=1, temperature=0.0, guidance=4.0), condition)
    np.testing.assert_array_equal(found, jnp.argmax(without + 4.0 * (with_class - without), axis=2))
    assert (found != jnp.argmax(with_class, axis=2)).any()
    none = draw(MaskedDecoding(steps=2), None)
    np.testing.assert_array_equal(draw(MaskedDecoding(steps=2, guidance=0.0), condition), none)
    assert [MaskedDecoding(steps=5, guidance=g).network_calls() for g in (1.0, 0.0, 4.0)] == [5, 10, 10]


@pytest.mark.parametrize(
    ("data", "split", "unit", "end"),
    [(pixel_masked.tiny.data, "test", "dim", ""), (Reversal(symbols=3, length=2), "train", "token", "_of_train")],
)
def test_a_metric_is_the_bound_of_its_split(data, split, unit, end):
    model = Echo(vocabulary=data.vocabulary)
    metric = MaskedLikelihood(examples=5, batch_size=2, draws=3, seed=7, split=split)
    found = metric(Evaluation(model, {}, data, lambda n: np.zeros(n)))
    x, keys = jnp.asarray(data.arrays(split, 5)["x"]), sample_keys(jax.random.key(7), jnp.arange(5))
    nats = -np.asarray(log_prob_bounds(model, {}, {"x": x}, keys, 3)) / x.shape[1]
    numbers = {"nats_per_token_bound": nats, f"bits_per_{unit}_bound": nats / math.log(2)}
    assert nats.std() > 0.1
    assert found == {
        **{name + end: pytest.approx(of.mean(), rel=1e-5) for name, of in numbers.items()},
        **{f"{name}_stderr{end}": pytest.approx(of.std(ddof=1) / 5**0.5, rel=1e-5) for name, of in numbers.items()},
    }


def test_an_experiment_fills_in_the_vocabulary():
    experiment = load_experiment("pixel_masked", tiny=True)
    assert experiment.resolved_model().vocabulary == 17  # type: ignore[attr-defined]
    assert config.decode(config.encode(experiment)) == experiment
    assert config.options(Sampler)["masked_decoding"] is MaskedDecoding
    Plan(experiment)
    with pytest.raises(UserError, match="the model has 9 tokens, but the data has 17"):
        Plan(replace(experiment, model=replace(experiment.model, vocabulary=9)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedModel(backbone=Transformer()), "must be bidirectional"),
        (lambda: MaskedModel().tokens, "neither it nor its data says how many"),
        (lambda: MaskedModel(vocabulary=V).init(KEYS[0], {"x": KEYS, "weight": KEYS}), "have weights"),
        (lambda: MaskedTokens(smoothing=1.0), r"smoothing=1.0 must be in \[0, 1\)"),
        (lambda: MaskedTokens(label_dropout=1.5), r"label_dropout=1.5 is not in \[0, 1\]"),
        (lambda: MaskedLikelihood(draws=0), "draws=0 must be at least 1"),
        (lambda: MaskedDecoding(steps=0), "steps=0 must be at least 1"),
        (lambda: MaskedDecoding(temperature=-1.0), "temperature=-1.0"),
        (lambda: MaskedDecoding(steps=7)(MODELS["gru"], {}, KEYS, None, (T,)), "steps=7 is more than the 6 tokens"),
        (lambda: MaskedDecoding(guidance=2.0)(MODELS["gru"], {}, KEYS, None, (9,)), "guidance=2.0 needs a class"),
        (lambda: MaskedDecoding()(LanguageModel(), {}, KEYS, None, (9,)), "from a MaskedModel, got LanguageModel"),
        (lambda: MaskedTokens()(LanguageModel(), {}, KEYS[0], {}, jnp.asarray(0)), "by a MaskedModel, got Lang"),
    ],
)
def test_settings_that_fit_nothing(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
