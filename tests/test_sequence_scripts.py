"""Texts as a user trains and draws them: prompts, stops, presets, and each mistake's one message."""

import json

import numpy as np
import pytest

from tests.scripts import here

TEXT = "the river runs and the river bends\nwhere the river ends\n" * 40
TINY = ("char_transformer", "--tiny", "--sample-every", "0")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "river.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("run") / "river"
    code, out, err = here("train.py", *TINY, "--data.path", str(text), "--workdir", str(folder))
    assert code == 0, err
    assert "perplexity" in out
    return folder


def test_a_run_holds_its_alphabet_and_writes_on_from_a_prompt(run, text, tmp_path):
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["alphabet"] == "".join(sorted(set(TEXT)))
    text.rename(tmp_path / "moved.txt")  # what is drawn needs the file no more
    try:
        more = ("--prompt", "the river", "--n", "2", "--length", "60", "--out", str(tmp_path))
        code, out, err = here("sample.py", str(run), *more)
    finally:
        (tmp_path / "moved.txt").rename(text)
    assert code == 0, err
    written = (tmp_path / "samples.txt").read_text()
    assert written in out
    samples = written.rstrip("\n").split("\n" + "-" * 40 + "\n")
    assert [len(sample) for sample in samples] == [60, 60]
    assert all(sample.startswith("the river") for sample in samples)
    assert np.load(tmp_path / "samples.npz")["x"].shape == (2, 60)
    assert "2 samples from step 20: 51 tokens" in out
    code, out, err = here(
        "sample.py", str(run), "--sampler", "beam_search", "--beams", "2", "--n", "1", "--length", "9"
    )
    assert code == 0, err
    assert "1 samples from step 20: 8 tokens" in out


def test_mistakes_with_a_run(run):
    for arguments, message in (
        (("--prompt", "rivéer"), "--prompt: 'é' is not among the"),
        (("--prompt", "the river", "--length", "9"), "a sample of 9 tokens has no room behind a prompt of 9"),
        (("--prompt", ""), "nothing can be predicted from nothing"),
        (("--top-p", "0"), "top_p=0.0 in (0, 1]"),
        (("--sampler", "beam"), "no Sampler of that name; did you mean beam_search"),
        (("--sampler", "diffusion"), "the diffusion sampler needs a Denoiser, got LanguageModel"),
    ):
        code, _, err = here("sample.py", str(run), *arguments)
        assert code == 2, arguments
        assert message in err, arguments


def test_mistakes_before_the_first_step(text, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    translate = ("transformer_translate", "--tiny", "--data", "pair_files")
    files = ("--data.source-path", str(text), "--data.target-path", str(tmp_path / "short.txt"))
    for arguments, message in (
        ((*TINY, "--data.path", str(tmp_path / "empty.txt")), "empty.txt is empty"),
        ((*TINY, "--data.path", "nowhere.txt"), "nowhere.txt"),
        (
            (*TINY, "--data.path", str(text), "--model.backbone.context", "15"),
            "a sequence of 16 tokens is longer than the",
        ),
        ((*TINY, "--data.path", str(text), "--data.context", "5000"), "context=5000 needs"),
        ((*TINY, "--model.vocabulary", "300"), "the model has 300 tokens, but the data has"),
        (("char_transformer", "--preset", "nanogtp"), "nanogpt_cpu"),
        (("char_lstm", "--preset", "big"), "char_lstm has no preset 'big'; it has none"),
        ((*translate, *files), "has 80 lines"),
    ):
        code, _, err = here("train.py", *arguments, "--workdir", str(tmp_path / "w"))
        assert code == 2, (arguments, err)
        assert message in err, (arguments, err)
        assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "w").exists()
