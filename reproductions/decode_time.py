"""What the next token costs against its place: from a cache of keys and values, and by reading all before it again.

A transformer of 4 layers of 256, one sequence; beside it an LSTM of 512, whose state is all it has read. Medians.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from models.backbone import Backbone
from models.language_model import LanguageModel
from models.rnn import LSTM
from models.transformer import Transformer
from reproductions.reproduction import Row, Source
from training.trained import Trained

SCALES = {"tiny": None, "small": None}
SOURCE = Source(paper="Attention Is All You Need", arxiv="1706.03762", equation="table 1: complexity of a layer")
PLACES = {"tiny": (64, 256, 1024), "small": (64, 128, 256, 512, 1024, 2047)}
ROUNDS, CACHE, VOCABULARY = 20, 2048, 256
NETS: dict[str, Backbone] = {"transformer": Transformer(width=256, depth=4, heads=4), "LSTM": LSTM(width=512)}
SIZE = (8, 4.4)


def milliseconds(run: Callable[[], Any]) -> float:
    found = []
    for _ in range(ROUNDS + 1):  # the first is not counted
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return 1e3 * float(np.median(found[1:]))


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    for name, net in NETS.items():
        model = LanguageModel(backbone=net, vocabulary=VOCABULARY)
        variables = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((1, 8), jnp.int32)})
        prefill = jax.jit(model.prefill, static_argnums=2)
        step, apply = jax.jit(model.step, donate_argnums=1), jax.jit(lambda v, x, m=model: m.apply(v, x)[:, -1])
        for place in PLACES[scale]:
            x = jnp.zeros((1, place), jnp.int32)
            held = [prefill(variables, x, CACHE)[0]]

            def cached(held: list[Any] = held, place: int = place) -> Any:
                if "index" in held[0]:
                    held[0] = {**held[0], "index": jnp.asarray(place, jnp.int32)}
                held[0], logits = step(variables, held[0], jnp.zeros((1,), jnp.int32))  # noqa: B023
                return logits

            again = milliseconds(lambda: apply(variables, x))  # noqa: B023
            yield {"network": name, "place": place, "ms, from its state": milliseconds(cached), "ms, read again": again}


def draw(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplots()
    for colour, name in zip(("C0", "C1"), NETS, strict=True):
        own = [row for row in rows if row["network"] == name]
        for key, line in (("ms, from its state", "-"), ("ms, read again", "--")):
            places, values = [row["place"] for row in own], [row[key] for row in own]
            axes.loglog(places, values, line, marker="o", color=colour, label=f"{name}{key.removeprefix('ms')}")
    axes.set(xlabel="place of the token", ylabel="milliseconds a token")
    places = sorted({row["place"] for row in rows})
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.legend()


def headline(rows: list[Row]) -> str:
    last = max((row for row in rows if row["network"] == "transformer"), key=lambda row: row["place"])
    cached, again = last["ms, from its state"], last["ms, read again"]
    return f"transformer, place {last['place']}: {cached:.1f} ms from its cache, {again:.0f} ms by reading all again"
