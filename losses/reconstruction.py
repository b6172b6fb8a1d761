"""What a first stage is trained on: to say the images, through its bottleneck.

    (1)  L = (−log P(x | q) + β·KL(q ‖ prior))/D + λ·penalty,  D pixels and channels        1711.00937 eq. 3

P, β·KL and penalty are the model's (models/vqvae.py). The KL divergence to a uniform prior over codes is constant where
they are not drawn, and left out; what codes cost is their prior's to say.
"""

import math
from dataclasses import dataclass

from jaxtyping import Array, Int, Key

from losses.loss import Loss, Objective, mean_over_dims
from models.codec import Codec
from models.model import Batch, Model, Variables


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Loss):
    """Eq. (1). Logs the squared error, nats a dimension of the reconstruction, and how the codes are used."""

    penalty: float = 1.0  # λ

    def __call__(
        self, model: Model, variables: Variables, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]
    ) -> Objective:
        if not isinstance(model, Codec):
            raise TypeError(f"images are reconstructed by a VQVAE or VQVAE2, got {type(model).__name__}")
        x = batch["x"]
        found = model.reconstruct(variables, x, key)
        dims = math.prod(x.shape[1:])
        own = {"squared_error": mean_over_dims((found.image - x) ** 2), "nats_per_dim": -found.log_prob / dims}
        value = (found.weighted_kl - found.log_prob) / dims + self.penalty * found.penalty
        return Objective(value, own | {"penalty": found.penalty} | found.metrics, found.state)
