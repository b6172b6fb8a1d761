"""Sequences: text, lines, tasks, pairs and images as tokens hold what they say, and mistakes are answered clearly."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.arrays import ArraySource
from data.dataset import Batches, Dataset, MalformedDataError, MissingDataError, UnknownDataError
from data.digits import Digits
from data.drawn import BLOCK
from data.image_tokens import ImageTokens
from data.pairs import GeneratedPairs, PairFiles
from data.pixels import to_model_space
from data.tasks import Adding, Copying, Parity, Reversal, Sorting
from data.text import Lines, Text
from data.toys import EightGaussians
from training import config

POEM = "".join(f"{i}: the quick brown fox, {i * i} times — jumps over ünë lazy dog\n" for i in range(40))
NAMES = ["ada", "grace", "", "alan", "barbara", "kurt", "  ", "emmy", "sofia", "carl", "leonhard", "élie"]
TASKS = [Copying(), Copying(symbols=3, length=4, delay=5), Reversal(), Sorting(symbols=30, length=6), Parity(length=9)]


@pytest.fixture
def poem(tmp_path) -> str:
    (tmp_path / "poem.txt").write_text(POEM, encoding="utf-8")
    return str(tmp_path / "poem.txt")


@pytest.fixture
def names(tmp_path) -> str:
    (tmp_path / "names.txt").write_text("\r\n".join(NAMES), encoding="utf-8", newline="")
    return str(tmp_path / "names.txt")


def pair_files(folder, source, target, **fields) -> PairFiles:
    for name, text in (("a.txt", source), ("b.txt", target)):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return PairFiles(source_path=str(folder / "a.txt"), target_path=str(folder / "b.txt"), **fields)


def zeros_are_shaped_like_a_batch(data: Dataset) -> None:
    batch = Batches(data.source("train"), 4, seed=0)[0]
    zeros = data.zeros(4)
    assert {name: (a.shape, a.dtype) for name, a in zeros.items()} == {
        name: (a.shape, a.dtype) for name, a in batch.items()
    }
    assert all(not a.any() for a in zeros.values())
    assert batch["x"].shape[1:] == data.shape
    if data.vocabulary:
        assert batch["x"].min() >= 0
        assert batch["x"].max() < data.vocabulary


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_windows_are_the_text(poem, unit):
    data = Text(path=poem, unit=unit, context=12)
    whole = POEM if unit == "characters" else POEM.encode()
    cut = int(len(whole) * 0.9)
    shown = [whole[i : i + 13] for i in range(cut - 12)]
    train = data.source("train")
    assert len(train) == len(shown)
    rows = train.read(np.arange(len(train)), 0, np.arange(len(train)))["x"]
    decoded = [data.decode(row) for row in rows]
    assert decoded == [part if isinstance(part, str) else part.decode("utf-8", "replace") for part in shown]
    assert data.vocabulary == (256 if unit == "bytes" else len(set(POEM)))
    assert rows[-1, -1] == data.encode(POEM)[cut - 1]
    zeros_are_shaped_like_a_batch(data)


def test_every_held_out_token_is_predicted_once(poem):
    data = Text(path=poem, context=7)
    held_out = data.encode(POEM)[int(len(POEM) * 0.9) :]
    rows = data.arrays("test", 10_000)["x"]
    predicted = rows[:, 1:].ravel()
    assert len(held_out) - len(predicted) <= 7  # what no longer fills a window
    np.testing.assert_array_equal(predicted, held_out[1 : len(predicted) + 1])
    np.testing.assert_array_equal(rows[:, 0], held_out[: len(predicted) : 7])


def test_a_stream_goes_on_where_it_was(poem):
    data = Text(path=poem, context=9, streams=6)
    batches = Batches(data.source("train"), 6, seed=5)
    text = data.encode(POEM)[: int(len(POEM) * 0.9)]
    row = len(text) // 6
    steps = (row - 1) // 9
    seen = [batches[i]["x"] for i in range(steps + 1)]
    for before, after in pairwise(seen[:-1]):
        np.testing.assert_array_equal(before[:, -1], after[:, 0])
    for r in range(6):
        read = np.concatenate([seen[0][r, :1], *(batch[r, 1:] for batch in seen[:-1])])
        np.testing.assert_array_equal(read, text[r * row : r * row + len(read)])
        assert row - len(read) < 9
    np.testing.assert_array_equal(seen[-1], seen[0])
    assert len(batches.source) == 6 * steps
    halves = [Batches(data.source("train"), 6, seed=5, rows=np.arange(3 * p, 3 * p + 3))[3]["x"] for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), seen[3])
    zeros_are_shaped_like_a_batch(data)


def test_the_standard_library_is_there():
    data = Text(context=32)
    source = Path(json.__file__).parent.parent / "ast.py"
    head = source.read_text()[:2000]
    assert data.decode(data.encode(head)) == head
    x = Batches(data.source("train"), 64, seed=0)[3]["x"]
    assert x.shape == (64, 33)
    assert set("".join(map(data.decode, x))) <= set(data.pinned().alphabet)
    assert 90 <= data.vocabulary <= 128
    assert len(data.source("train")) > 1_000_000


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_a_line_ends_in_its_stop(names, unit):
    data = Lines(path=names, unit=unit, length=9, held_out=0.3)
    train, test = (data.arrays(split, 100) for split in ("train", "test"))
    assert len(test["x"]) == 3
    x, weight = (np.concatenate([train[key], test[key]]) for key in ("x", "weight"))
    words = [name for name in NAMES if name.strip()]
    assert sorted(map(data.decode, x)) == sorted(words)
    assert data.stop == data.vocabulary - 1 == (256 if unit == "bytes" else len(set("".join(words))))
    for row, counted in zip(x, weight, strict=True):
        size = len(data.encode(data.decode(row)))
        assert (row[:size] < data.stop).all()
        assert (row[size:] == data.stop).all()
        np.testing.assert_array_equal(counted, np.arange(9) <= size)
    zeros_are_shaped_like_a_batch(data)
    # Of what a model goes on to write, the first stop is the end.
    assert data.decode(np.concatenate([data.encode("ada"), [data.stop], data.encode("ada")])) == "ada"


def test_a_pinned_set_needs_its_files_no_more(poem, names, tmp_path, monkeypatch):
    kinds = {"text.Text": Text, "text.Lines": Lines, "pairs.PairFiles": PairFiles}
    monkeypatch.setattr(config, "registry", lambda: kinds)  # all there is would be imported for these three
    pairs = pair_files(tmp_path, "un\ndeux\ntrois", "one\ntwo\nthree", unit="words", source_length=4, target_length=5)
    sets = [Text(path=poem, context=5), Text(path=poem, unit="bytes"), Lines(path=names, length=10), pairs]
    texts = ["quick", "ünë", "grace", "trois"]
    before = [(data.vocabulary, data.encode(text)) for data, text in zip(sets, texts, strict=True)]
    pinned = [config.decode(json.loads(json.dumps(config.encode(data.pinned())))) for data in sets]
    assert [data.pinned() for data in pinned] == pinned
    for path in tmp_path.iterdir():
        path.unlink()
    for data, text, (vocabulary, tokens) in zip(pinned, texts, before, strict=True):
        assert data.vocabulary == vocabulary
        np.testing.assert_array_equal(data.encode(text), tokens)
        assert data.decode(tokens) == text
        assert data.zeros(2)["x"].shape == (2, *data.shape)
        with pytest.raises(MissingDataError, match="there is no text file"):
            data.source("train")
    assert Digits().pinned() == Digits()


@pytest.mark.parametrize("unit", ["characters", "bytes", "words"])
def test_what_is_encoded_is_decoded(tmp_path, unit):
    data = pair_files(tmp_path, "zwei Häuser\n日本", "two  houses\nJapan 𝄞", unit=unit)
    for text in ("zwei houses", "日本 Japan"):
        assert data.decode(data.encode(text)) == text
    source = data.arrays("train", 1)
    assert {data.decode(source["source"][0]), data.decode(source["x"][0])} in (
        {"zwei Häuser", "two houses" if unit == "words" else "two  houses"},
        {"日本", "Japan 𝄞"},
    )


def test_pairs_stay_together(tmp_path):
    numbers = [str(i) for i in range(50)]
    data = pair_files(tmp_path, "\n".join([*numbers, "", ""]) + "\n", "\n".join([*(n + n for n in numbers), "", "?"]))
    assert data.unit == "characters"
    train, test = data.arrays("train", 100), data.arrays("test", 100)
    both = {key: np.concatenate([train[key], test[key]]) for key in train}
    assert len(test["x"]) == 5
    found = {data.decode(s): data.decode(x) for s, x in zip(both["source"], both["x"], strict=True)}
    assert found == {"": "?"} | {n: n + n for n in numbers}  # of two blank lines, the one with a translation
    for source, length, x, weight in zip(*(both[k] for k in ("source", "source_length", "x", "weight")), strict=True):
        assert length == len(data.decode(source)) + 1
        np.testing.assert_array_equal(weight, np.arange(64) <= len(data.decode(x)))
    zeros_are_shaped_like_a_batch(data)


@pytest.mark.parametrize("task", [*TASKS, Adding(length=7), GeneratedPairs(), GeneratedPairs(words=5, length=5)])
def test_what_is_drawn_is_a_pure_function_of_the_seed_and_the_number(task):
    source, fresh = task.source("train"), task.source("train")
    whole = Batches(source, 300, seed=2)
    position = BLOCK // 300  # spans two blocks
    parts = [Batches(fresh, 300, seed=2, rows=np.arange(100 * p, 100 * p + 100))[position] for p in range(3)]
    for key, value in whole[position].items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
        single = source.read(np.zeros(1, int), 2, np.asarray([position * 300 + 299]))
        np.testing.assert_array_equal(single[key][0], value[299])
    key = "source" if "source" in whole[0] else "x"
    others = [whole[1], Batches(source, 300, seed=3)[0], Batches(task.source("test"), 300, seed=2)[0]]
    assert not any(np.array_equal(whole[0][key], other[key]) for other in others)
    first, again = (Batches(task.source("test"), 300, seed=seed)[0][key] for seed in (2, 3))
    np.testing.assert_array_equal(first, again)
    zeros_are_shaped_like_a_batch(task)


def right(task, question: str) -> str:
    """The answer to a printed question, without NumPy."""
    if isinstance(task, Parity):
        return "01"[question.count("1") & 1]
    kinds = {Copying: lambda s: s.rstrip("_"), Reversal: lambda s: s[::-1], Sorting: lambda s: "".join(sorted(s))}
    return kinds[type(task)](question)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_are_what_counts(task):
    batch = Batches(task.source("train"), 500, seed=0)[0]
    for row, weight in zip(batch["x"], batch["weight"], strict=True):
        text = task.decode(row)
        np.testing.assert_array_equal(task.encode(text), row)
        question, answer = text.split(":")
        assert len(question) + 1 == task.prompt_length
        assert answer == right(task, question)
        assert question.count("_") == getattr(task, "delay", 0)
        np.testing.assert_array_equal(weight, np.arange(len(text)) >= task.prompt_length)
    symbols = batch["x"][:, : task.length]
    kinds = len(np.unique(symbols))
    np.testing.assert_allclose(np.bincount(symbols.ravel()) / symbols.size, 1 / kinds, atol=5 / np.sqrt(symbols.size))


def test_adding_is_the_sum_of_two_and_one_is_a_poor_answer():
    data = Adding(length=21)
    batch = data.arrays("train", 20_000)
    numbers, marks = batch["x"][..., 0], batch["x"][..., 1]
    assert set(np.unique(marks)) == {0.0, 1.0}
    np.testing.assert_array_equal(marks[:, :10].sum(axis=1), 1.0)
    np.testing.assert_array_equal(marks[:, 10:].sum(axis=1), 1.0)
    assert (marks.mean(axis=0) > 0.03).all()  # every place is marked in turn
    np.testing.assert_allclose((numbers * marks).sum(axis=1), batch["target"], rtol=1e-6)
    assert np.mean((batch["target"] - 1.0) ** 2) == pytest.approx(1 / 6, abs=0.005)
    assert data.vocabulary == 0


def test_image_tokens_are_the_images():
    images = Digits()
    data = ImageTokens(images=images)
    tokens, plain = data.arrays("test", 360), images.arrays("test", 360)
    assert (data.vocabulary, data.shape, data.num_classes, data.bin_width) == (17, (64,), 10, None)
    assert (tokens["x"].min(), tokens["x"].max()) == (0, 16)
    np.testing.assert_array_equal(data.shown(tokens["x"]), plain["x"])
    np.testing.assert_array_equal(tokens["label"], plain["label"])
    np.testing.assert_array_equal(tokens["x"][3].reshape(8, 8), (plain["x"][3, :, :, 0] + 1) * 8)
    zeros_are_shaped_like_a_batch(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_of_a_coloured_image_comes_back(dtype, monkeypatch):
    levels = np.random.default_rng(0).integers(np.iinfo(dtype).max + 1, size=(5, 4, 6, 3)).astype(dtype)
    levels[0, 0, 0] = 0, 1, np.iinfo(dtype).max
    source = ArraySource(levels, None, to_model_space)
    monkeypatch.setattr(Digits, "shape", (4, 6, 3))
    monkeypatch.setattr(Digits, "bin_width", 2.0 / np.iinfo(dtype).max)
    monkeypatch.setattr(Digits, "source", lambda self, split: source)
    data = ImageTokens(images=Digits())
    x = data.arrays("train", 5)["x"]
    np.testing.assert_array_equal(x, levels.reshape(5, -1))  # red, green, blue of a pixel in turn
    np.testing.assert_array_equal(data.shown(x), to_model_space(levels))
    assert data.vocabulary == np.iinfo(dtype).max + 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: Text(path=str(f / "none.txt")).vocabulary, MissingDataError, "there is no text file '.*none.txt'"),
        (lambda f: Text(path=str(f / "empty.txt")).source("train"), MalformedDataError, "empty.txt is empty"),
        (lambda f: Text(path=str(f / "latin.txt")).vocabulary, MalformedDataError, "byte 2 is 0xe9; --data.unit bytes"),
        (
            lambda f: Text(path=str(f / "abc.txt"), context=30).source("train"),
            MalformedDataError,
            "abc.txt has 60 tokens, 54 to train on and 6 held out, and context=30 needs 31 and 31",
        ),
        (
            lambda f: Text(path=str(f / "abc.txt"), context=5, streams=16).source("test"),
            MalformedDataError,
            "context=5 needs 16·6 and 6",
        ),
        (
            lambda f: Text(path=str(f / "abc.txt")).encode("abé"),
            ValueError,
            r"^'é' is not among the 4 characters of the text: \\nabc$",
        ),
        (
            lambda f: Text(path=str(f / "abc.txt"), alphabet="\nab").source("train"),
            MalformedDataError,
            r"abc.txt: 'c' is not among the 3 characters of the text: \\nab$",
        ),
        (lambda f: Text(alphabet="abca"), ValueError, "the alphabet has 'a' twice"),
        (lambda f: Text(alphabet="ab", unit="bytes"), ValueError, "bytes have no alphabet"),
        (lambda f: Text(context=0), ValueError, "context=0 is not positive"),
        (lambda f: Text(held_out=1.0), ValueError, "held_out=1.0 is not between 0 and 1"),
        (lambda f: Text().source("validation"), UnknownDataError, "train and test, not 'validation'"),
        (lambda f: Text(alphabet="ab").decode(np.asarray([0, 2])), ValueError, "2 is not among the tokens 0 … 1"),
        (
            lambda f: Lines(path=str(f / "abc.txt"), length=3).vocabulary,
            ValueError,
            "line 1 of .*abc.txt has 3 characters, and length=3 has room for 2 and the stop; the longest line needs 4",
        ),
        (
            lambda f: Lines(path=str(f / "latin.txt"), unit="bytes").source("train"),
            ValueError,
            "latin.txt has too few lines to train on and to hold out 10% of: 1",
        ),
        (
            lambda f: pair_files(f, "a\nb\n", "a\nb\n\n").source("train"),
            ValueError,
            "a.txt has 2 lines and .*b.txt 3",
        ),
        (lambda f: pair_files(f, "", "a").vocabulary, ValueError, "a.txt is empty"),
        (
            lambda f: pair_files(f, "a\nb", "a\nb c d", unit="words", target_length=3).source("train"),
            ValueError,
            "line 2 of .*b.txt has 3 words, and target_length=3 has room for 2",
        ),
        (lambda f: Copying(symbols=1), ValueError, "symbols=1 is not between 2 and 62"),
        (lambda f: Copying(delay=-1), ValueError, "delay=-1 is negative"),
        (lambda f: Parity(length=0), ValueError, "length=0 is not positive"),
        (lambda f: Adding(length=1), ValueError, "length=1 has no two halves"),
        (lambda f: GeneratedPairs(words=3), ValueError, "words=3 is not between 4 and 2450"),
        (lambda f: GeneratedPairs(length=3), ValueError, "length=3 is too short"),
        (lambda f: GeneratedPairs().encode("hello"), ValueError, "'hello' is not among the 90 words of the text"),
        (lambda f: GeneratedPairs().translate(np.asarray([0, 1])), ValueError, "a sentence has one verb, and .* has 0"),
        (lambda f: GeneratedPairs().translate(np.asarray([0, 20])), ValueError, "adjectives and a noun, not ''"),
        (lambda f: ImageTokens(images=EightGaussians()).vocabulary, ValueError, "EightGaussians has values of shape"),
        (lambda f: Digits().encode("a"), ValueError, "Digits is no text"),
        (lambda f: Adding().decode(np.asarray([0])), ValueError, "Adding is no text"),
    ],
)
def test_mistakes_are_named(make, error, message, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caé".encode("latin-1"))
    (tmp_path / "abc.txt").write_text("abc\n" * 15)
    with pytest.raises(error, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_read_any_file(tmp_path):
    raw = bytes(range(256)) * 3
    (tmp_path / "any").write_bytes(raw)
    data = Text(path=str(tmp_path / "any"), unit="bytes", context=4)
    whole = np.concatenate([data.arrays("train", 10**6)["x"][:, 0], data.arrays("train", 10**6)["x"][-1, 1:]])
    np.testing.assert_array_equal(whole, np.frombuffer(raw, np.uint8)[: len(whole)])
    assert len(whole) == int(len(raw) * 0.9)
