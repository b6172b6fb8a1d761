"""Where the translator looks: the decoder's attention to the source, one sentence, every layer and head.

1706.03762's figures 3 to 5, on the generated language pair of transformer_translate, whose words' places are known: the
verb goes to the end and an adjective behind its noun, so that a head that aligns words leaves the diagonal there.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from models.backbone import within
from models.encoder_decoder import EncoderDecoder
from models.model import Batch, Variables
from reproductions.reproduction import Cut, Row, Source
from training.errors import UserError
from training.trained import Trained

SCALES = {"tiny": Cut("transformer_translate", steps=300), "small": "transformer_translate"}
SOURCE = Source(paper="Attention Is All You Need", arxiv="1706.03762", equation="eq. 1, figures 3 to 5")
SIZE = (12, 6.4)
CANDIDATES = 50  # held-out sentences, of which the longest is shown


def looks(model: EncoderDecoder, variables: Variables, batch: Batch) -> Float[Array, "layers b heads t s"]:
    """Eq. (1) of models/attention.py: the softmax of every layer's attention to the source."""
    memory = model.encode(variables, batch)
    mask = within(batch["source_length"], memory.shape[1])[:, None, :]
    return model.decoder.apply(  # type: ignore[return-value]
        {"params": variables["params"]["decoder"]}, model.embed(variables, batch["x"]), memory, mask, method="looks"
    )


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    model, data = trained.model, trained.experiment.data
    if not isinstance(model, EncoderDecoder):
        raise UserError(f"attention to a source is an EncoderDecoder's, and that run's model is {type(model).__name__}")
    batch = data.arrays("test", CANDIDATES)
    chosen = int(np.argmax(batch["source_length"]))
    batch = {name: jnp.asarray(value[chosen : chosen + 1]) for name, value in batch.items()}
    found = np.asarray(jax.jit(lambda v, b: looks(model, v, b))(trained.variables, batch))[:, 0]
    source, target = (np.asarray(batch[name][0]) for name in ("source", "x"))
    words = [data.decode(tokens[:1]) or "(stop)" for tokens in source[:, None]][: int(batch["source_length"][0])]
    answer = [data.decode(tokens[:1]) or "(stop)" for tokens in target[:, None]][: int(np.sum(batch["weight"][0]))]
    for layer, heads in enumerate(found):
        for head, weights in enumerate(heads):
            weights = weights[: len(answer), : len(words)]
            top = float(weights.max(axis=1).mean())
            names = {"source": np.asarray(words), "target": np.asarray(answer)}
            yield {"layer": layer + 1, "head": head + 1, "largest weight, mean": top, "weights": weights, **names}


def draw(rows: list[Row], figure: Figure) -> None:
    layers = max(row["layer"] for row in rows)
    panels: Any = figure.subplots(layers, len(rows) // layers, squeeze=False)
    for axes, row in zip(panels.flat, rows, strict=True):
        axes.imshow(row["weights"], vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        axes.set_title(f"layer {row['layer']}, head {row['head']}", fontsize=9)
        axes.set_xticks(range(len(row["source"])), row["source"], rotation=90, fontsize=7)
        axes.set_yticks(range(len(row["target"])), row["target"], fontsize=7)
    panels[-1, 0].set(xlabel="source")
    panels[0, 0].set(ylabel="translation, predicted word")


def headline(rows: list[Row]) -> str:
    best = max(rows, key=lambda row: row["largest weight, mean"])
    share = 100 * best["largest weight, mean"]
    return (
        f"layer {best['layer']}, head {best['head']} puts {share:.0f} % of a word's attention on one word of the source"
    )
