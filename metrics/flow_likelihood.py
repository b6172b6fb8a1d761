"""Held-out likelihood of a flow, one pass an example.

    (1)  bits/dim = −log P(x)/(D·log 2)                         P of models/flows/flow.py, eq. 3
    (2)  nats of x scaled to [0, 1] = log P(x) + D·log n,  n levels: what NICE (1410.8516) and others report

log P is a lower bound with one draw of the dequantisation, as reported in papers.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from metrics.examples import OverExamples, is_conditional, mean_and_error, named
from metrics.likelihood import bits_per_dim
from metrics.metric import Evaluation
from models.flows.flow import Flow


@dataclass(frozen=True, kw_only=True)
class FlowLikelihood(OverExamples):
    """Bits/dim (1) and nats (2) of a split; for continuous data nats of x as it stands, `nll`.

    What else the flow has to say of these passes is there too: `nfe` of a continuous one, and more. A class-conditional
    flow is given each example's own class.
    """

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        model = evaluation.model
        if not isinstance(model, Flow):
            raise ValueError(f"this likelihood is of a Flow; this run's model is {type(model).__name__}")

        def log_prob(variables: Any, batch: dict[str, Array], keys: Key[Array, " b"]) -> Any:
            found, seen = model.observe(variables, keys, batch["x"], model.condition(batch))
            return found, {name: value for name, value in seen.items() if value.ndim}

        arrays = evaluation.data.arrays(self.split, self.examples)
        values, seen = self.over(log_prob, evaluation, arrays)
        if not np.isfinite(values).all():
            raise ValueError(f"{np.sum(~np.isfinite(values))} of {len(values)} examples have no finite density")
        others = {name: float(np.mean(value)) for name, value in seen.items()}
        dims = arrays["x"][0].size
        if model.bin_width is None:
            numbers = mean_and_error("nll", -values)
        else:
            levels = round(2.0 / model.bin_width) + 1
            numbers = mean_and_error("bits_per_dim", bits_per_dim(values, dims, 1.0))  # of P: the bin is in it
            numbers |= mean_and_error("nats_on_unit_cube", values + dims * math.log(levels))
        return named(numbers | others, self.split, is_conditional(model, arrays))
