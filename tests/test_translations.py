"""Pairs of languages: the generated one, whose translations are known, and TFDS's, as bytes."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.naming import ShardedFileTemplate
from tensorflow_datasets.core.splits import SplitDict, SplitInfo
from tensorflow_datasets.proto import tf_example_pb2

from data.dataset import MissingDataError, UnknownDataError
from data.languages import HELD_OUT, Grammar
from data.pairs import GeneratedPairs
from data.tfds import prepared
from data.translations import TFDSPairs
from tests.test_sequence_data import zeros_are_shaped_like_a_batch


def by_hand(data: GeneratedPairs):
    """The rules of data/languages.py on words, with a dictionary that is read off the list of words."""
    words, nouns, head = data.grammar.dictionary(), data.grammar.nouns, data.grammar.nouns + data.grammar.verbs
    own, other = words[: data.words], words[data.words :]
    fixed = dict(zip(own[:head], other[:head], strict=True))
    stems = dict(zip(own[head:], (word[:-1] for word in other[head::2]), strict=True))
    gender = {noun: "ao"[i % 2] for i, noun in enumerate(own[:nouns])}

    def translation(sentence: str) -> str:
        phrases, adjectives, verb = [], [], ""
        for word in sentence.split():
            if word in stems:
                adjectives.insert(0, stems[word])
            elif word in gender:
                phrases += [fixed[word], *(stem + gender[word] for stem in adjectives)]
                adjectives = []
            else:
                verb = fixed[word]
        return " ".join([*phrases, verb])

    return translation


PAIRS = [GeneratedPairs(), GeneratedPairs(words=13, length=11)]


@pytest.mark.parametrize("data", PAIRS)
def test_translations_are_right(data):
    translation, longest = by_hand(data), 0
    for split in ("train", "test"):
        batch = data.arrays(split, 200)
        columns = (batch[key] for key in ("source", "source_length", "x", "weight"))
        for source, length, x, weight in zip(*columns, strict=True):
            np.testing.assert_array_equal(data.translate(source), x)
            np.testing.assert_array_equal(data.translate(source[: length - 1]), x)
            sentence = data.decode(source)
            assert data.decode(x) == translation(sentence)
            np.testing.assert_array_equal(data.encode(sentence), source[: length - 1])
            np.testing.assert_array_equal(weight, np.arange(data.length) < length)
            longest = max(longest, len(sentence.split()))
    assert longest == 3 + 2 * ((data.length - 4) // 2)


@pytest.mark.parametrize("data", PAIRS)
def test_translations_are_one_to_one_and_held_out_by_their_words(data):
    batches = {split: data.arrays(split, 20_000) for split in ("train", "test")}
    source, x = (np.concatenate([batches[split][key] for split in batches]) for key in ("source", "x"))
    different = [len(np.unique(rows, axis=0)) for rows in (source, x, np.concatenate([source, x], axis=1))]
    assert min(different) == max(different) > 2000
    assert (x != source).any(axis=1).all()
    for split, batch in batches.items():
        nouns_and_verb = batch["source"] < data.grammar.nouns + data.grammar.verbs
        assert (nouns_and_verb.sum(axis=1) == 3).all()
        numbers = (batch["source"] * nouns_and_verb).sum(axis=1) - data.grammar.nouns  # where the verbs' tokens begin
        assert ((numbers % HELD_OUT == 0) == (split == "test")).all()


def test_all_words_are_different():
    for words in (4, 40, 2450):
        dictionary = Grammar(words).dictionary()
        assert len(set(dictionary)) == len(dictionary) == Grammar(words).stop
    assert Grammar(40).dictionary()[:2] == GeneratedPairs().grammar.dictionary()[:2]


@pytest.fixture
def ted(tmp_path, monkeypatch) -> TFDSPairs:
    """A translation set of three pairs, in the files that TFDS itself reads."""
    original = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name, **options: original(name, data_dir=tmp_path, **options))
    prepared.cache_clear()
    yield TFDSPairs(
        name="ted_hrlr_translate/pt_to_en",
        source_language="pt",
        target_language="en",
        source_length=8,
        target_length=12,
    )
    prepared.cache_clear()


def write_ted(splits: dict[str, list[tuple[str, str]]]) -> None:
    builder = tfds.builder("ted_hrlr_translate/pt_to_en", file_format="array_record")
    folder = Path(builder.data_path)
    folder.mkdir(parents=True)
    infos = []
    for split, pairs in splits.items():
        template = ShardedFileTemplate(
            data_dir=folder, dataset_name="ted_hrlr_translate", split=split, filetype_suffix="array_record"
        )
        writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
        for pair in pairs:
            example = tf_example_pb2.Example()
            for language, text in zip(("pt", "en"), pair, strict=True):
                example.features.feature[language].bytes_list.value.append(text.encode())
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(SplitInfo(name=split, shard_lengths=[len(pairs)], num_bytes=1, filename_template=template))
    builder.info.set_splits(SplitDict(infos))
    builder.info.write_to_directory(folder)


def test_a_translation_set_is_read_as_bytes(ted, tmp_path):
    with pytest.raises(MissingDataError, match=f"ted_hrlr_translate/pt_to_en is not in {tmp_path} .*download_and_prep"):
        ted.source("train")
    write_ted({"train": [("olá", "hello"), ("um", "one")], "test": [("demasiado longa", "")]})
    assert (ted.vocabulary, ted.shape, ted.stop) == (257, (12,), 256)
    train, test = ted.arrays("train", 10), ted.arrays("test", 10)
    assert [(ted.decode(s), ted.decode(x)) for s, x in zip(train["source"], train["x"], strict=True)] == [
        ("olá", "hello"),
        ("um", "one"),
    ]
    np.testing.assert_array_equal(train["source_length"], [5, 3])  # á is two bytes
    np.testing.assert_array_equal(train["weight"].sum(axis=1), [6, 4])
    assert ted.decode(test["source"][0]) == "demasia"  # cut, and ended
    assert test["source"][0, -1] == 256
    assert (test["source_length"][0], test["weight"].sum()) == (8, 1)
    zeros_are_shaped_like_a_batch(ted)
    for fields, message in (
        ({"source_language": "fr"}, "has no text 'fr'; it has pt, en"),
        ({"train": "validation"}, "has no split 'validation'; it has train, test"),
    ):
        with pytest.raises(UnknownDataError, match=message):
            TFDSPairs(**{**vars(ted), **fields}).source("train")


def test_small_grammars_are_whole():
    """With four words there are four sentences without adjectives; one of them is held out."""
    data = GeneratedPairs(words=4, length=4)
    sentences = {split: {data.decode(s) for s in data.arrays(split, 200)["source"]} for split in ("train", "test")}
    assert (len(sentences["train"]), len(sentences["test"])) == (3, 1)
    dictionary = data.grammar.dictionary()
    every = {" ".join((dictionary[a], dictionary[2], dictionary[b])) for a, b in product(range(2), repeat=2)}
    assert sentences["train"] | sentences["test"] == every
