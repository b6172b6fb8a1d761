"""How far back a gradient reaches: ‖∂y/∂h_t‖ against the lag T − t, of an RNN, an LSTM and a GRU that learn to add.

The problem of Bengio, Simard & Frasconi 1994 and Hochreiter & Schmidhuber 1997: y is the network's answer after
sequences of 220 numbers (data/tasks.py, Adding), and what is shown is its gradient with respect to what the hidden
state was, over that at the end. Each network is trained by adding_rnn on sequences of 200, and drawn before and after.
tiny has sequences of 60, and shows 66.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from data.tasks import Adding
from metrics.metric import Evaluation
from metrics.squared_error import MeanSquaredError
from models.model import Variables
from models.regressor import SequenceRegressor
from models.rnn import GRU, LSTM, RNN
from reproductions.reproduction import Row, Source
from reproductions.runs import UNSEEN, in_runs, made, shortened
from training.step import named_key
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="Learning Long-Term Dependencies with Gradient Descent Is Difficult (1994); Long Short-Term Memory (1997)",
    arxiv="",
    equation="‖∂y/∂h_t‖ against T − t; the adding problem",
)
STEPS = 600  # of a cut training
CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
LENGTH, EXAMPLES = {"tiny": 66, "small": 220}, 100
LAGS = {"tiny": (6, 30, 60), "small": (20, 100, 200)}
SIZE = (10, 4.2)


def reach(model: SequenceRegressor, variables: Variables, x: Float[Array, "b t f"]) -> Float[Array, " t"]:
    """‖∂y/∂h_t‖ of the last layer, t = 1 … T, the mean over examples."""
    net: Any = model.backbone
    start = net.empty(x.shape[0], x.shape[1])

    def answer(nudges: Float[Array, "t layers b h"]) -> Float[Array, ""]:
        def step(state: Any, row: Any) -> tuple[Any, None]:
            x, nudge = row
            _, state = net.apply({"params": variables["params"]["backbone"]}, x[:, None], state)
            return {**state, "h": state["h"] + nudge}, None

        state, _ = jax.lax.scan(step, start, (x.swapaxes(0, 1), nudges))
        return jnp.sum(model.answer(variables, state["h"][-1]))

    found = jax.grad(answer)(jnp.zeros((x.shape[1], *start["h"].shape)))
    return jnp.mean(jnp.linalg.norm(found[:, -1], axis=-1), axis=-1)


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    x = jnp.asarray(Adding(length=LENGTH[scale]).arrays("test", EXAMPLES)["x"])
    for name, cls in CELLS.items():
        changes: dict[str, Any] = {"model": SequenceRegressor(backbone=cls(width=64))}
        if scale == "tiny":
            changes |= {"data": Adding(length=60), **shortened("adding_rnn", STEPS), **UNSEEN}
        run = read(made("adding_rnn", in_runs(f"adding_problem_{name}", scale), **changes))
        model: Any = run.model
        fresh = jax.jit(model.init)(named_key(run.experiment.seed, "init"), {"x": x})
        for when, variables in (("at the start", fresh), ("trained", run.variables)):
            evaluation = Evaluation(model, variables, run.experiment.data, lambda n: np.zeros((n, 1)))
            norms = np.asarray(jax.jit(lambda v, x, model=model: reach(model, v, x))(variables, x))
            over = norms[::-1] / norms[-1]
            error = MeanSquaredError()(evaluation)["squared_error"]
            row: Row = {"cell": name, "when": when, "squared_error": error}
            yield row | {f"lag {lag}": float(over[lag]) for lag in LAGS[scale]} | {"norms": over}


def draw(rows: list[Row], figure: Figure) -> None:
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axes, when in zip(panels, ("at the start", "trained"), strict=True):
        for colour, row in zip(("C0", "C1", "C2"), [row for row in rows if row["when"] == when], strict=False):
            label = f"{row['cell'].upper()}, squared error {row['squared_error']:.2g}"
            axes.semilogy(np.maximum(row["norms"], 1e-30), color=colour, label=label)
        axes.set(xlabel="lag T − t", title=when, ylim=(1e-12, 1e2))
        axes.legend(loc="lower left")
    panels[0].set(ylabel="‖∂y/∂h$_t$‖ over that at lag 0")


def summary(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        lags = ", ".join(f"{row[name]:.1e} at {name.removeprefix('lag ')}" for name in lags_of(row))
        yield f"{row['cell']:5}{row['when']:14}squared error {row['squared_error']:.2e}; of the gradient: {lags}"


def lags_of(row: Row) -> list[str]:
    """Its columns of gradients, the shortest lag first."""
    return [name for name in row if name.startswith("lag ")]


def headline(rows: list[Row]) -> str:
    lag = lags_of(rows[0])[-1]
    told = (f"{row['cell'].upper()} {row[lag]:.1e}" for row in rows if row["when"] == "trained")
    return f"gradient at {lag} over that at 0, trained: {', '.join(told)}"
