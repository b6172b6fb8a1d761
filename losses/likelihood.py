"""Maximum likelihood of a flow.

    (1)  L = −log P(x)/D                      nats a dimension; P of models/flows/flow.py, eq. 3
    (2)    + λ_K·K + λ_J·J                    of continuous flows: kinetic energy and Jacobian norm, 2002.02798 eq. 8
    (3)  bits/dim = −log P(x)/(D·log 2)

P is the probability of the levels, with the cost of dequantisation and of every scaling in it, so (3) has no constant.
Divided by D, learning rates and clipping mean the same for small and large examples.
"""

import math
from dataclasses import dataclass

import jax
from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective
from models.flows.flow import Flow
from models.model import Batch, Model, Variables


@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood(Loss):
    """Eq. (1), (2). Logs bits/dim where data has levels, nats (`nll`) where it is continuous."""

    kinetic: float = 0.0  # λ_K; continuous flows only
    jacobian: float = 0.0  # λ_J; continuous flows only

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, Flow):
            raise TypeError(f"the likelihood of data is known of a Flow, got {type(model).__name__}")
        x = batch["x"]
        keys = jax.random.split(key, x.shape[0])
        log_prob, seen = model.observe(variables, keys, x, model.condition(batch))
        dims = math.prod(x.shape[1:])
        value = -log_prob / dims
        for weight, name in ((self.kinetic, "kinetic_energy"), (self.jacobian, "jacobian_energy")):
            if weight:
                if name not in seen:
                    raise ValueError(f"{name} is of a continuous flow, and this model says none")
                value = value + weight * seen[name]
        own = {"nll": -log_prob} if model.bin_width is None else {"bits_per_dim": -log_prob / (dims * math.log(2.0))}
        return Objective(value, own | seen, variables["state"])
