"""2-D toy densities with exact log-density and exact sampler, about unit variance a coordinate.

    eight_gaussians, two_moons, swiss_roll   Gaussian mixtures: p(x) = Σ_k N(x; μ_k, s²I)/K; the curved ones put their
                                             means densely along the curve, so the mixture is the set, not a fit to it
    checkerboard                             uniform on 8 of 16 squares
    pinwheel                                 five Gaussian arms, each rotated by an angle that grows with the radius: a
                                             rotation by a function of |x| preserves area, so no Jacobian appears

Example n of a run is drawn from fold_in(key(seed + 1), n).
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt

from data.dataset import Arrays, Dataset, Source, is_test

Points = Float[Array, "b 2"]


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset):
    """Base of the 2-D toys: a new one defines `point(key)` and `log_prob(x)`."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @abstractmethod
    def point(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        """One exact sample."""

    @abstractmethod
    def log_prob(self, x: Points) -> Float[Array, " b"]:
        """Exact log-density, in nats."""

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "{n} 2"]:
        """n exact samples."""
        return jax.vmap(self.point)(jax.random.split(key, n))

    def source(self, split: str) -> Source:
        return ToySource(self, split)


TEST = 0x7E57
BLOCK = 8192  # examples drawn at once: a call for each batch would cost more than its points


@lru_cache(maxsize=16)
def _drawer(toy: Toy):
    def draw(seed: UInt[Array, ""], first: UInt[Array, ""]) -> Points:
        key, numbers = jax.random.key(seed), first + jnp.arange(BLOCK, dtype=jnp.uint32)
        return jax.vmap(lambda n: toy.point(jax.random.fold_in(key, n)))(numbers)

    return jax.jit(draw)


@lru_cache(maxsize=8)
def _block(toy: Toy, seed: int, index: int) -> Float[np.ndarray, "block 2"]:
    return np.asarray(_drawer(toy)(np.uint32(seed), np.uint32(index * BLOCK)))


@dataclass(frozen=True)
class ToySource(Source):
    """An endless supply; an epoch is nominal."""

    toy: Toy
    split: str

    def __len__(self) -> int:
        return 100_000

    def read(self, records: Int[np.ndarray, " b"], seed: int, numbers: Int[np.ndarray, " b"]) -> Arrays:
        # The test split is another stream, whatever the run's seed: its number is left out of the others'.
        seed = TEST if is_test(self.split) else seed + 1 + (seed + 1 >= TEST)
        blocks = numbers // BLOCK
        parts = [_block(self.toy, seed, int(i))[numbers[blocks == i] % BLOCK] for i in np.unique(blocks)]
        return {"x": np.concatenate(parts)}


@dataclass(frozen=True, kw_only=True)
class Mixture(Toy):
    """Equal Gaussians of one standard deviation around `means()`."""

    std: float = 0.1

    @abstractmethod
    def means(self) -> Float[np.ndarray, "k 2"]: ...

    def point(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        which, noise = jax.random.split(key)
        means = jnp.asarray(self.means(), jnp.float32)
        return means[jax.random.randint(which, (), 0, len(means))] + self.std * jax.random.normal(noise, (2,))

    def log_prob(self, x: Points) -> Float[Array, " b"]:
        means = jnp.asarray(self.means(), x.dtype)
        squared = jnp.sum((x[:, None] - means[None]) ** 2, axis=-1) / self.std**2
        log_components = -0.5 * squared - np.log(2 * np.pi * self.std**2)
        return jax.nn.logsumexp(log_components, axis=1) - np.log(len(means))


@dataclass(frozen=True, kw_only=True)
class EightGaussians(Mixture):
    """Eight Gaussians on a circle of radius √2."""

    def means(self) -> Float[np.ndarray, "k 2"]:
        angle = np.arange(8) * np.pi / 4
        return np.sqrt(2.0) * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True, kw_only=True)
class TwoMoons(Mixture):
    """Two interleaved half circles."""

    def means(self) -> Float[np.ndarray, "k 2"]:
        angle = np.pi * (np.arange(128) + 0.5) / 128
        upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
        return (np.concatenate([upper, lower]) - [0.5, 0.25]) * [1.2, 2.0]


@dataclass(frozen=True, kw_only=True)
class SwissRoll(Mixture):
    """A spiral of one and a half turns."""

    def means(self) -> Float[np.ndarray, "k 2"]:
        angle = 1.5 * np.pi * (1.0 + 2.0 * np.sqrt((np.arange(512) + 0.5) / 512))
        return angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1) / 7.0


@dataclass(frozen=True, kw_only=True)
class Checkerboard(Toy):
    """Uniform on the dark squares of a 4×4 board over [−2, 2]²."""

    def point(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        square, inside = jax.random.split(key)
        index = jax.random.randint(square, (), 0, 8)
        row = index // 2
        corner = jnp.stack([2 * (index % 2) + row % 2, row]) - 2.0
        return corner + jax.random.uniform(inside, (2,))

    def log_prob(self, x: Points) -> Float[Array, " b"]:
        cell = jnp.floor(x)
        dark = (jnp.sum(cell, axis=1) % 2 == 0) & jnp.all((x >= -2) & (x < 2), axis=1)
        return jnp.where(dark, -np.log(8.0), -jnp.inf)


@dataclass(frozen=True, kw_only=True)
class Pinwheel(Toy):
    """Five curved arms."""

    radial_std: float = 0.3
    tangential_std: float = 0.1
    rate: float = 0.6  # angle of rotation over radius

    def _turn(self, x: Float[Array, "*b 2"], angle: Float[Array, "*b"]) -> Float[Array, "*b 2"]:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], axis=-1)

    def point(self, key: Key[Array, ""]) -> Float[Array, "2"]:
        which, noise = jax.random.split(key)
        arm = 2 * np.pi / 5 * jax.random.randint(which, (), 0, 5)
        std = jnp.asarray([self.radial_std, self.tangential_std])
        x = jnp.asarray([1.3, 0.0]) + std * jax.random.normal(noise, (2,))
        return self._turn(x, arm + self.rate * jnp.linalg.norm(x))

    def log_prob(self, x: Points) -> Float[Array, " b"]:
        straight = self._turn(x, -self.rate * jnp.linalg.norm(x, axis=1))
        arms = jnp.arange(5) * (2 * np.pi / 5)
        local = jax.vmap(lambda angle: self._turn(straight, jnp.broadcast_to(-angle, x.shape[:1])))(arms)
        squared = ((local[..., 0] - 1.3) / self.radial_std) ** 2 + (local[..., 1] / self.tangential_std) ** 2
        log_components = -0.5 * squared
        log_normaliser = np.log(5 * 2 * np.pi * self.radial_std * self.tangential_std)
        return jax.nn.logsumexp(log_components, axis=0) - log_normaliser
