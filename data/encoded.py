"""The contract of a set that a first stage has made of another set's images (training/codes.py)."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Encoded(Dataset):
    """Base. `pictured` is the set of images, record for record, and `shown` decodes."""

    @abstractmethod
    def log_prob_of_images(self, split: str, limit: int) -> Float[np.ndarray, " n"]:
        """log P(image | its x) of the split's first images, in nats.

        Raises:
          ValueError: that is no probability of x's own making.
        """
