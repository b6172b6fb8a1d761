"""Held-out loss against seconds of training, characters: an RNN, an LSTM, a GRU and the transformer that replaced them.

Each is its experiment of the folder (char_rnn, char_lstm, char_gru, char_transformer) as it stands, at tiny in fewer
steps, of about the same seconds on two CPU cores, on one text: `--data FILE`, or by default the sources of Python's
library. What is measured on the way, on the first held-out windows, is not counted; at the end each writes. The
recurrent ones, whose state goes on, are read over 16 windows of 64 characters as one, the transformer over its context
of 64.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
from matplotlib.figure import Figure

from metrics.metric import Evaluation
from metrics.token_likelihood import TokenLikelihood
from reproductions.reproduction import Row, Source
from reproductions.runs import shortened
from training.cli import load_experiment
from training.mesh import put_batch
from training.plan import Plan
from training.trained import Trained

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="nanoGPT, its setting for a CPU (github.com/karpathy/nanoGPT)",
    arxiv="",
    equation="mean −log p of the next character, held out",
    number="1.88 nats a character of tiny Shakespeare (its transformer, which ours is not; needs --data of that text)",
)
TAKES_DATA = True
NAMES = ("char_rnn", "char_lstm", "char_gru", "char_transformer")
TIMES = {"tiny": 4, "small": 12}  # measurements of each run
PART = 0.02  # of the experiments' steps, at tiny
WINDOWS, ALL = 300, {"tiny": 300, "small": 10_000}  # measured on the way, and at the end
TINY = False  # the experiments' tiny forms
SIZE = (8, 4.4)


def curve(name: str, scale: str, data: str) -> tuple[np.ndarray, np.ndarray, dict[str, float], str]:
    """Seconds and nats a character on the way, the measurement at the end, and what the run writes."""
    experiment = load_experiment(name, tiny=TINY)
    experiment = replace(experiment, data=replace(experiment.data, path=data)).pinned()
    if scale == "tiny":
        experiment = replace(experiment, **shortened(name, round(PART * experiment.steps)))
    began = time.perf_counter()
    plan = Plan(experiment)
    state, spent = plan.initial(), 0.0
    seconds, nats = [], []

    def measured(windows: int) -> dict[str, float]:
        variables = {"params": state.average, "state": state.model}
        evaluation = Evaluation(plan.model, variables, experiment.data, lambda n: np.zeros((n, 1)))
        own = experiment.metrics[0]
        assert isinstance(own, TokenLikelihood)
        return replace(own, examples=windows)(evaluation)

    times = TIMES[scale]
    measured_at = {round(i * experiment.steps / times) for i in range(1, times + 1)}
    for step in range(1, experiment.steps + 1):
        state, metrics = plan.train_step(state, put_batch(plan.batches[step - 1], plan.batch_sharding))
        jax.block_until_ready(metrics)
        if step in measured_at:
            spent += time.perf_counter() - began
            seconds.append(spent)
            nats.append(measured(WINDOWS)["nats_per_token"])
            began = time.perf_counter()
    text = experiment.data.decode(plan.samples(state, 1)[0])
    return np.asarray(seconds), np.asarray(nats), measured(ALL[scale]), text


def rows(scale: str, trained: Trained | None, data: str = "") -> Iterator[Row]:
    for name in NAMES:
        seconds, nats, last, text = curve(name, scale, data)
        row: Row = {"experiment": name, "seconds": float(seconds[-1]), "nats": last["nats_per_token"]}
        row |= {"bits per character": last["bits_per_token"], "perplexity": last["perplexity"]}
        yield row | {"times": seconds, "losses": nats, "text": np.asarray(text)}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    for row in rows:
        axes.plot(row["times"], row["losses"], marker=".", label=f"{row['experiment']}, {row['nats']:.3f} at the end")
    axes.set(xlabel="seconds of training, compilation included", ylabel="held-out nats a character")
    axes.legend()


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield f"--- {row['experiment']} writes:\n{str(row['text'])[:400]}"


def headline(rows: list[Row]) -> str:
    found = ", ".join(f"{row['experiment'].removeprefix('char_')} {row['nats']:.3f}" for row in rows)
    seconds = sorted(row["seconds"] for row in rows)
    return f"{found} nats a character after {seconds[0]:.0f} to {seconds[-1]:.0f} s"
