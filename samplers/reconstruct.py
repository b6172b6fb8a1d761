"""What an autoencoder draws: given images, through its bottleneck and back."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key

from models.codec import Codec
from models.model import Condition, Model, Variables
from samplers.sampler import Sampler
from samplers.solver import Samples


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Sampler):
    """The condition has `image` [n, H, W, C]. Nothing is drawn; the trajectory is the image and what became of it."""

    UNIT: ClassVar[str] = "pass"

    def __call__(
        self,
        model: Model,
        variables: Variables,
        keys: Key[Array, " n"],
        condition: Condition,
        shape: tuple[int, ...],
        trajectory: bool = False,
    ) -> Samples:
        if not isinstance(model, Codec):
            raise TypeError(f"images are reconstructed by a VQVAE or VQVAE2, got {type(model).__name__}")
        if "image" not in (condition or {}):
            raise ValueError("there is no image in the condition to reconstruct")
        x = (condition or {})["image"]
        image = model.reconstruct(variables, x).image
        return Samples(image, jnp.stack([x, image]) if trajectory else None)

    def network_calls(self) -> int:
        return 1
