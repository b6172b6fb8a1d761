"""Models of tokens and how they are trained and drawn from: one protocol, exact likelihoods, exact search."""

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.dataset import Dataset
from data.tasks import Reversal
from losses.sequence import NextToken, log_probs, token_cross_entropy
from metrics.exact_match import ExactMatch
from metrics.metric import Evaluation
from metrics.token_likelihood import TokenLikelihood, joined
from models.encoder_decoder import EncoderDecoder
from models.language_model import LanguageModel
from models.regressor import SequenceRegressor
from models.rnn import GRU, LSTM, RNN
from models.transformer import Transformer
from samplers.autoregressive import Decoding, filtered
from samplers.beam_search import BeamSearch
from samplers.solver import Samples
from tests.conftest import tiers
from tests.flows import perturbed

V = 7
NET = Transformer(width=8, heads=2, depth=2)
MODELS = {
    "rnn": LanguageModel(backbone=RNN(width=8), vocabulary=V, tied=False),
    "lstm": LanguageModel(backbone=LSTM(width=8, depth=2, layer_norm=True), vocabulary=V),
    "gru": LanguageModel(backbone=GRU(width=8, reset="before"), vocabulary=V, from_start=True),
    "transformer": LanguageModel(backbone=NET, vocabulary=V),
    "learned": LanguageModel(backbone=NET.clone(context=12, positions="learned"), vocabulary=V, tied=False),
    "classes": LanguageModel(backbone=NET, vocabulary=V, from_start=True, num_classes=3, scaled=True),
    "translator": EncoderDecoder(
        encoder=NET.clone(bidirectional=True), decoder=NET.clone(cross=True, order="post"), vocabulary=V, stop=6
    ),
}
each = pytest.mark.parametrize("model", tiers(MODELS, first=("classes",)))


@functools.cache
def case(model, size=3, steps=9):
    """(variables, batch): tokens, classes and sources; no parameter at its start."""
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.integers(0, V, (size, steps)), jnp.int32),
        "label": jnp.arange(size) % 3,
        "source": jnp.asarray(rng.integers(0, V, (size, 5)), jnp.int32),
        "source_length": jnp.asarray([5, 3, 1] * size)[:size],
    }
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    return {**variables, "params": jax.jit(perturbed)(variables["params"], jax.random.key(1))}, batch


@functools.partial(jax.jit, static_argnums=0)
def applied(model, variables, x, condition=None):
    return model.apply(variables, x, condition)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def drawn(sampler, model, variables, keys, condition, shape=(9,)):
    return sampler(model, variables, keys, condition, shape).x


def told(batch):
    return {name: batch[name] for name in ("label", "source", "source_length")}


def near(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", tiers(MODELS, first=("translator",)))
def test_a_prompt_and_steps_are_the_whole(model):
    variables, batch = case(model)
    x, condition = batch["x"], told(batch)
    whole = applied(model, variables, x, condition)
    given = whole.shape[1] - x.shape[1]  # 1 where the first token is modelled too
    state, logits = jax.jit(model.prefill, static_argnums=2)(variables, x[:, :4], 9, condition)
    found, step = [logits], jax.jit(model.step)
    for t in range(4, 9):
        state, logits = step(variables, state, x[:, t])
        found.append(logits)
    near(jnp.stack(found, axis=1), whole[:, 3 + given :])
    if given:
        state, logits = model.prefill(variables, x[:, :0], 9, condition)
        near(logits, whole[:, 0])


@each
def test_its_likelihoods_add_up_to_one(model):
    """Over all continuations of two tokens by two more."""
    variables, _ = case(model)
    tails = jnp.asarray(list(itertools.product(range(V), repeat=2)), jnp.int32)
    x = jnp.concatenate([jnp.asarray([[2, 5]] * len(tails)), tails], axis=1)
    batch = {"x": x, "label": jnp.full((len(x),), 1), "source": jnp.tile(jnp.arange(3), (len(x), 1))}
    found = jax.jit(lambda v, b: log_probs(model, v, b))(variables, batch)[0][:, -2:]
    near(jnp.sum(jnp.exp(jnp.sum(found, axis=1))), 1.0)
    assert float(jnp.exp(jnp.sum(found, axis=1)).max()) > 1.5 / V**2  # and they are not all alike


@pytest.mark.thorough
def test_a_class_and_a_source_are_told():
    for name in ("classes", "translator"):
        variables, batch = case(MODELS[name])
        other = {"label": (batch["label"] + 1) % 3, "source": (batch["source"] + 1) % V}
        found = [applied(MODELS[name], variables, batch["x"], c) for c in (told(batch), told(batch) | other)]
        assert float(jnp.abs(found[0] - found[1]).max()) > 1e-2
    padded = batch["source"].at[2, 1:].set(3)  # behind the source's end
    near(applied(MODELS["translator"], variables, batch["x"], told(batch) | {"source": padded})[2], found[0][2], 1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_in_runs_is_the_whole(smoothing):
    rng = np.random.default_rng(3)
    h, kernel = jnp.asarray(rng.normal(size=(2, 7, 4))), jnp.asarray(rng.normal(size=(4, V)))
    targets = jnp.asarray(rng.integers(0, V, (2, 7)))

    def loss(places, h, kernel):
        nats, smoothed = token_cross_entropy(lambda h: h @ kernel, h, targets, smoothing, places)
        return jnp.sum(jnp.sin(smoothed)) + jnp.sum(nats**2)

    whole = jax.value_and_grad(loss, (1, 2))(0, h, kernel)
    for places in (1, 3, 7):  # 3 leaves one over
        found = jax.value_and_grad(loss, (1, 2))(places, h, kernel)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    logs = np.asarray(jax.nn.log_softmax(h @ kernel))
    nats = -np.take_along_axis(logs, np.asarray(targets)[:, :, None], 2)[:, :, 0]
    found = token_cross_entropy(lambda h: h @ kernel, h, targets, smoothing, 3)
    near(found[0], nats)
    near(found[1], (1 - smoothing) * nats - smoothing * logs.mean(axis=2))


def test_logits_of_a_large_vocabulary_are_never_held_whole():
    """50,257 tokens, 2 · 1,024 places, compiled and not run: a fifth of the memory of all logits at once."""
    h, table = jax.ShapeDtypeStruct((2, 1024, 32), "float32"), jax.ShapeDtypeStruct((50_257, 32), "float32")

    def held(places):
        def loss(h, table):
            targets = jnp.zeros((2, 1024), jnp.int32)
            return jnp.mean(token_cross_entropy(lambda h: h @ table.T, h, targets, 0.0, places)[1])

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(h, table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert held(64) <= held(0) / 5
    assert held(700) <= 0.6 * held(0)  # two runs: a loop of one turn, and a rest, would hold all of them


@pytest.mark.thorough
def test_a_token_counts_the_same_in_long_and_short_sequences(key):
    model = MODELS["transformer"]
    variables, batch = case(model)
    weight = jnp.asarray([[1.0] * 9, [1.0] * 4 + [0.0] * 5, [0.0] * 9])
    objective = NextToken()(model, variables, key, batch | {"weight": weight}, jnp.asarray(0))
    nats = -jax.nn.log_softmax(model.apply(variables, batch["x"]))[:, :-1]
    nats = jnp.take_along_axis(nats, batch["x"][:, 1:, None], axis=2)[:, :, 0]
    near(jnp.mean(objective.value), (jnp.sum(nats[0]) + jnp.sum(nats[1, :3])) / 11)
    near(jnp.mean(objective.metrics["bits_per_token"]), jnp.mean(objective.value) / math.log(2))


def test_a_carried_state_reads_windows_as_one_text(key):
    model = LanguageModel(backbone=LSTM(width=8, depth=2), vocabulary=V, carried=True)
    variables, batch = case(model, steps=9)
    parts = [{"x": batch["x"][:, :5]}, {"x": batch["x"][:, 4:]}]  # the last token of one is the first of the next
    first = model.read(variables, parts[0], key)
    second = model.read({**variables, "state": first.state}, parts[1], key)
    whole = model.read(variables, batch).h
    near(jnp.concatenate([first.h, second.h], axis=1), whole)
    near(
        model.read({**variables, "state": first.state}, parts[1]).h, model.read(variables, parts[1]).h
    )  # not in training


KEYS = jax.random.split(jax.random.key(5), 4)


@each
def test_samples_are_a_matter_of_their_own_key(model):
    variables, batch = case(model, size=4)
    condition = told(batch) | {"prompt": batch["x"][:, :2]}
    draw = functools.partial(drawn, Decoding(top_k=5, top_p=0.9), model, variables)
    x = draw(KEYS, condition)
    np.testing.assert_array_equal(x[:, :2], batch["x"][:, :2])
    order = jnp.asarray([3, 1])
    some = draw(KEYS[order], jax.tree.map(lambda leaf: leaf[order], condition))
    np.testing.assert_array_equal(some, x[order])


@each
def test_greedy_is_the_likeliest_token_of_the_whole(model):
    variables, batch = case(model)
    condition = told(batch) | {"prompt": batch["x"][:, :1]}
    x = np.asarray(drawn(Decoding(temperature=0.0), model, variables, KEYS[:3], condition))
    likeliest = np.argmax(applied(model, variables, x, condition), axis=2)
    given = likeliest.shape[1] - 9  # 1 where the first token is modelled too
    for row, best in zip(x, likeliest[:, given : 8 + given], strict=True):
        for t in range(1, 9):
            if model.stop is not None and model.stop in row[:t]:
                assert row[t] == model.stop
            else:
                assert row[t] == best[t - 1]


@pytest.mark.thorough
def test_more_than_the_context_is_read_by_halves():
    model = MODELS["learned"]  # of 12
    variables, batch = case(model)
    prompt, total = batch["x"][:, :3], 40
    x = jax.jit(
        lambda: Decoding(temperature=0.0, length=total)(model, variables, KEYS[:3], {"prompt": prompt}, (9,)).x
    )()
    tokens, start, apply = np.asarray(prompt), 0, jax.jit(model.apply)
    while tokens.shape[1] < total:  # each token from what is in sight, all of it read anew
        if tokens.shape[1] - start > 12:
            start = tokens.shape[1] - 6
        seen = tokens[:, start:]
        logits = apply(variables, jnp.pad(seen, ((0, 0), (0, 12 - seen.shape[1]))))  # one shape for all
        best = jnp.argmax(logits[:, seen.shape[1] - 1], axis=1)
        tokens = np.concatenate([tokens, np.asarray(best, np.int32)[:, None]], axis=1)
    np.testing.assert_array_equal(x, tokens)
    condition = {"prompt": prompt}
    drawn = [
        jax.jit(Decoding(length=n), static_argnums=(0, 4))(model, variables, KEYS[:3], condition, (9,)).x
        for n in (total, 20)
    ]
    np.testing.assert_array_equal(drawn[0][:, :20], drawn[1])


def test_a_stop_ends_what_is_drawn_and_not_what_is_given():
    model = dataclasses.replace(MODELS["learned"], stop=2)  # of a context of 12
    variables, _ = case(model)
    prompt = jnp.full((64, 3), 2, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 64)
    x = np.asarray(jax.jit(lambda: Decoding(length=40)(model, variables, keys, {"prompt": prompt}, (9,)).x)())
    ended = np.cumsum(x[:, 3:] == 2, axis=1) > 0
    assert (x[:, 3:][ended] == 2).all()  # through all windows
    assert (~ended[:, 0]).any()
    assert ended[:, -1].any()


def test_an_exact_match_is_of_its_own_split():
    """A task's question and answer come from one stream, whichever it is."""
    data = Reversal(symbols=3, length=2)
    model = LanguageModel(backbone=NET, vocabulary=data.vocabulary)
    variables, _ = case(model)

    @dataclass(frozen=True, kw_only=True)
    class Right(Decoding):
        """Answers what it is asked."""

        def __call__(self, model, variables, keys, condition, shape, trajectory=False):
            prompt = condition["prompt"]
            return Samples(jnp.concatenate([prompt, prompt[:, 1::-1]], axis=1), None, None)

    for split in ("train", "test"):
        metric = ExactMatch(sampler=Right(), split=split, examples=8, batch_size=8)
        found = metric(Evaluation(model, variables, data, lambda n: np.zeros(n)))
        end = "_of_train" if split == "train" else ""
        assert found == {f"exact_match{end}": 1.0, f"token_match{end}": 1.0}


def test_what_is_filtered():
    logits = jnp.log(jnp.asarray([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]))
    kept = lambda **k: np.isfinite(np.asarray(filtered(logits, **k))).tolist()  # noqa: E731
    assert kept(top_k=1) == [[True, False, False, False], [False, False, False, True]]
    assert kept(top_k=2) == [[True, False, True, False], [False, False, True, True]]
    assert kept(top_p=0.45) == [[True, False, False, False], [False, False, True, True]]
    assert kept(top_p=0.75) == [[True, False, True, False], [False, True, True, True]]
    assert kept(top_k=3, top_p=0.999) == [[True, False, True, True], [False, True, True, True]]
    assert kept(top_k=9, top_p=1.0) == [[True] * 4] * 2


def test_frequencies_are_the_models():
    """20,000 first tokens; at temperature ½, of the three likeliest."""
    model = MODELS["classes"]
    variables, _ = case(model)
    logits = model.prefill(variables, jnp.zeros((1, 0), jnp.int32), 1)[1][0]
    expected = jax.nn.softmax(filtered(2.0 * logits[None], 3)[0])
    keys = jax.random.split(jax.random.key(3), 20_000)
    draw = jax.jit(lambda keys: Decoding(temperature=0.5, top_k=3)(model, variables, keys, None, (1,)).x)
    np.testing.assert_allclose(jnp.bincount(draw(keys)[:, 0], length=V) / 20_000, expected, atol=0.015)


@pytest.mark.thorough
@pytest.mark.parametrize("penalty", tiers([0.0, 2.0], first=(2.0,)))
def test_a_wide_beam_finds_the_best_there_is(penalty):
    """Against all sequences of up to three tokens over three symbols and a stop; 16 beams hold every prefix."""
    net = NET.clone(width=8, depth=1)
    model = EncoderDecoder(encoder=net.clone(bidirectional=True), decoder=net.clone(cross=True), vocabulary=4, stop=3)
    variables, batch = case(model)
    batch = jax.tree.map(lambda leaf: leaf[:2] % 4 if leaf.ndim > 1 else leaf[:2], batch)
    variables = {**variables, "params": jax.tree.map(lambda leaf: 1.5 * leaf, variables["params"])}
    search = jax.jit(lambda c: BeamSearch(beams=16, length_penalty=penalty).search(model, variables, 2, c, (3,)))
    found, scores = search(told(batch))
    everything = np.asarray(list(itertools.product(range(4), repeat=3)), np.int32)
    ended = np.cumsum(everything == 3, axis=1) - (everything == 3) > 0  # behind a stop
    unique = everything[((everything == 3) | ~ended).all(axis=1)]
    counts = (np.cumsum(unique == 3, axis=1) - (unique == 3) == 0).sum(axis=1)
    scored = jax.jit(functools.partial(log_probs, model))
    for row in range(2):
        condition = jax.tree.map(lambda leaf: jnp.repeat(leaf[row : row + 1], len(unique), axis=0), told(batch))  # noqa: B023
        weight = np.arange(3)[None, :] < counts[:, None]
        seen = scored(variables, {"x": jnp.asarray(unique), "weight": jnp.asarray(weight, jnp.float32), **condition})
        expected = np.asarray(seen[0]).sum(axis=1) / ((5 + counts) / 6) ** penalty
        order = np.argsort(-expected)
        near(scores[row, :10], expected[order[:10]], 1e-4)
        np.testing.assert_array_equal(found[row, :3], unique[order[:3]])


def test_one_beam_is_greedy():
    model = MODELS["gru"]
    variables, batch = case(model)
    condition = {"prompt": batch["x"][:, :2]}
    greedy, found = (
        drawn(sampler, model, variables, KEYS[:3], condition)
        for sampler in (Decoding(temperature=0.0), BeamSearch(beams=1))
    )
    np.testing.assert_array_equal(found, greedy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed(Dataset):
    """Arrays that are at hand."""

    batch: Any

    @property
    def shape(self):
        return self.batch["x"].shape[1:]

    def source(self, split):
        raise AssertionError("these arrays have no records")

    def arrays(self, split, limit):
        return {name: np.asarray(value) for name, value in self.batch.items()}

    @property
    def prompt_length(self):
        return 3


def test_metrics_are_what_they_say():
    model = MODELS["transformer"]
    variables, batch = case(model)
    batch = {"x": batch["x"], "weight": jnp.asarray([[1.0] * 9, [1.0] * 5 + [0.0] * 4, [1.0] * 9])}
    likelihood = TokenLikelihood(batch_size=2)(Evaluation(model, variables, Fixed(batch=batch), lambda n: np.zeros(n)))
    found = np.asarray(log_probs(model, variables, batch)[0])
    assert likelihood["nats_per_token"] == pytest.approx(-found.sum() / 20, rel=1e-5)
    assert likelihood["perplexity"] == pytest.approx(math.exp(-found.sum() / 20), rel=1e-5)
    greedy = drawn(Decoding(temperature=0.0), model, variables, KEYS[:3], {"prompt": batch["x"][:, :3]})
    wrong = greedy.at[1, 7].add(1).at[2, 4].set((greedy[2, 4] + 1) % V)  # the first is not counted
    weight = batch["weight"].at[:, :3].set(0.0)
    evaluation = Evaluation(model, variables, Fixed(batch={"x": wrong, "weight": weight}), lambda n: np.zeros(n))
    assert ExactMatch(batch_size=2)(evaluation) == {
        "exact_match": pytest.approx(2 / 3),
        "token_match": pytest.approx(13 / 14),
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LanguageModel(num_classes=3), "num_classes needs from_start"),
        (lambda: LanguageModel(backbone=NET.clone(bidirectional=True)), "must be causal"),
        (lambda: LanguageModel(carried=True), "an RNN's state"),
        (lambda: LanguageModel(backbone=NET.clone(context=1), from_start=True), "room for the start token alone"),
        (lambda: SequenceRegressor(backbone=GRU(bidirectional=True)), "must be causal"),
        (lambda: EncoderDecoder(encoder=NET), "the encoder must be bidirectional"),
        (lambda: LanguageModel(backbone=NET).tokens, "neither it nor its data says how many"),
        (lambda: Decoding(top_p=0.0), r"top_p=0.0 in \(0, 1\]"),
        (lambda: BeamSearch(beams=0), "beams=0 must be at least 1"),
        (lambda: NextToken(smoothing=1.0), r"must be in \[0, 1\)"),
    ],
)
def test_settings_that_fit_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("sampler", "prompt", "message"),
    [
        (Decoding(), 13, "a prompt of 13 tokens is longer than the model's context of 12"),
        (Decoding(length=5), 5, "a sample of 5 tokens has no room behind a prompt of 5"),
        (BeamSearch(length=14), 2, "a search for 14 tokens must have more than the prompt's 2, at most 13"),
        (Decoding(), 0, "nothing can be predicted from nothing"),
    ],
)
def test_prompts_that_fit_nothing(sampler, prompt, message):
    model = MODELS["learned"]
    variables, _ = case(model)
    with pytest.raises(ValueError, match=message):
        sampler(model, variables, KEYS[:3], {"prompt": jnp.zeros((3, prompt), jnp.int32)}, (20,))


def test_windows_are_joined():
    text = np.arange(21)
    windows = np.stack([text[i : i + 5] for i in range(0, 20, 4)])  # five windows
    np.testing.assert_array_equal(joined(windows, 2), [text[:9], text[8:17]])
    np.testing.assert_array_equal(joined(windows, 5), [text])
    for wrong, count in ((windows, 6), (windows + np.arange(5)[:, None], 2), (windows, 0)):
        with pytest.raises(ValueError, match="consecutive windows"):
            joined(wrong, count)
