"""Inception-v3 (Szegedy et al. 1512.00567) as Fréchet Inception distances are measured by (1706.08500), inference only.

    (1)  layer   y = relu(γ·(W∗x − m)/√(v + 10⁻³) + β),  m and v of training
    (2)  block   chains of layers, and one that pools first, side by side on the channels
    (3)  pool3   the mean over the last block's 8×8 positions: 2048 features

The weights are those of 2015-12-05, as they are published for PyTorch (pt_inception-2015-12-05-6726825d.pth), and the
network is what they were trained as. It is not quite the paper's: average pools do not count the zeros around the
image, and the last block's pool takes maxima.

Images in [−1, 1] are resized to 299×299, bilinearly between the centres of pixels and without a low-pass, as PyTorch's
reference does. They are measured as they are: neither clipped nor rounded to 8 bits, as a stored picture would be.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from data.dataset import MissingDataError
from models.model import Variables
from models.torch_file import read

FEATURES = 2048
SIDE = 299  # of the square that images are resized to
NAMES = {  # a layer's variables, and what the published file calls them
    ("conv", "kernel"): "conv.weight",
    ("bn", "scale"): "bn.weight",
    ("bn", "bias"): "bn.bias",
    ("bn", "mean"): "bn.running_mean",
    ("bn", "var"): "bn.running_var",
}

Image = Float[Array, "b h w c"]


class Layer(nn.Module):
    """Eq. (1)."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b h2 w2 features"]:
        exact = jax.lax.Precision.HIGHEST
        strides = (self.stride, self.stride)
        conv = nn.Conv(self.features, self.kernel, strides, self.padding, use_bias=False, precision=exact, name="conv")
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(conv(x)))


def chain(x: Image, name: str, *layers: tuple[int, int, int], halve: bool = False) -> Float[Array, "b h2 w2 c2"]:
    """Layers (features, rows, columns) one after the other: `name`_1, `name`_2, …, or `name` where it is but one.

    `halve`: the last one takes every second position, of whole windows.
    """
    for i, (features, rows, columns) in enumerate(layers, 1):
        how = (2, "VALID") if halve and i == len(layers) else (1, "SAME")
        x = Layer(features, (rows, columns), *how, name=f"{name}_{i}" if len(layers) > 1 else name)(x)
    return x


def fork(x: Image, name: str) -> Float[Array, "b h w 768"]:
    """A row and a column of a 3×3 kernel, side by side."""
    return jnp.concatenate([Layer(384, (1, 3), name=f"{name}a")(x), Layer(384, (3, 1), name=f"{name}b")(x)], axis=-1)


def average(x: Image) -> Image:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def maximum(x: Image) -> Image:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halved(x: Image) -> Float[Array, "b h2 w2 c"]:
    return nn.max_pool(x, (3, 3), (2, 2))


def block_a(x: Image, pool: int) -> list[Array]:
    return [
        chain(x, "branch1x1", (64, 1, 1)),
        chain(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
        chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        chain(average(x), "branch_pool", (pool, 1, 1)),
    ]


def block_b(x: Image) -> list[Array]:
    return [
        chain(x, "branch3x3", (384, 3, 3), halve=True),
        chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), halve=True),
        halved(x),
    ]


def block_c(x: Image, width: int) -> list[Array]:
    row, column = (width, 1, 7), (width, 7, 1)
    return [
        chain(x, "branch1x1", (192, 1, 1)),
        chain(x, "branch7x7", (width, 1, 1), row, (192, 7, 1)),
        chain(x, "branch7x7dbl", (width, 1, 1), column, row, column, (192, 1, 7)),
        chain(average(x), "branch_pool", (192, 1, 1)),
    ]


def block_d(x: Image) -> list[Array]:
    return [
        chain(x, "branch3x3", (192, 1, 1), (320, 3, 3), halve=True),
        chain(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), halve=True),
        halved(x),
    ]


def block_e(x: Image, pool: Callable[[Image], Image]) -> list[Array]:
    narrow = chain(x, "branch3x3_1", (384, 1, 1))
    wide = chain(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3))
    return [
        chain(x, "branch1x1", (320, 1, 1)),
        fork(narrow, "branch3x3_2"),
        fork(wide, "branch3x3dbl_3"),
        chain(pool(x), "branch_pool", (192, 1, 1)),
    ]


BLOCKS: dict[str, Callable[[Image], list[Array]]] = {
    "Mixed_5b": functools.partial(block_a, pool=32),
    "Mixed_5c": functools.partial(block_a, pool=64),
    "Mixed_5d": functools.partial(block_a, pool=64),
    "Mixed_6a": block_b,
    "Mixed_6b": functools.partial(block_c, width=128),
    "Mixed_6c": functools.partial(block_c, width=160),
    "Mixed_6d": functools.partial(block_c, width=160),
    "Mixed_6e": functools.partial(block_c, width=192),
    "Mixed_7a": block_d,
    "Mixed_7b": functools.partial(block_e, pool=average),
    "Mixed_7c": functools.partial(block_e, pool=maximum),
}


class Mixed(nn.Module):
    """Eq. (2)."""

    branches: Callable[[Image], list[Array]]

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b h2 w2 c2"]:
        return jnp.concatenate(self.branches(x), axis=-1)


class Inception(nn.Module):
    """Eq. (3) of images [B, H, W, 1 or 3] in [−1, 1] of any size. The modules have the published file's names."""

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b 2048"]:
        x = resized(x)
        x = Layer(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Layer(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = halved(Layer(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Layer(80, name="Conv2d_3b_1x1")(x)
        x = halved(Layer(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, branches in BLOCKS.items():
            x = Mixed(branches, name=name)(x)
        return x.mean((1, 2))


def resized(x: Image) -> Float[Array, "b 299 299 3"]:
    """What the network sees: grey is repeated, and the image is stretched.

    Raises:
      ValueError: the images are neither grey nor coloured.
    """
    check_shape(x.shape[1:])
    square = jax.image.resize(x, (x.shape[0], SIDE, SIDE, x.shape[3]), "bilinear", antialias=False)
    return jnp.broadcast_to(square, (*square.shape[:3], 3))


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises a ValueError where examples of that shape are no images for the network."""
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(f"Inception sees images [H, W, 1 or 3], and these examples have the shape {list(shape)}")


@functools.cache
def _layout() -> tuple[dict[str, tuple[int, ...]], Any]:
    """The published shape of each variable by its published name, and the structure of them all, in that order."""
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    found = {}
    for path, leaf in leaves:
        _, *modules, kind, name = (entry.key for entry in path)
        shape = leaf.shape if name != "kernel" else tuple(leaf.shape[axis] for axis in (3, 2, 0, 1))
        found[".".join([*modules, NAMES[kind, name]])] = shape
    return found, structure


def from_torch(tensors: Mapping[str, np.ndarray]) -> Variables:
    """The network's variables from the published file's tensors; what it has beyond the features is not looked at.

    Those are the classifiers, and each norm's count of its batches.

    Raises:
      ValueError: names are missing or superfluous, or shapes differ.
    """
    shapes, structure = _layout()
    beyond = lambda name: name.startswith(("fc.", "AuxLogits.")) or name.endswith(".num_batches_tracked")  # noqa: E731
    given = {name: tensor for name, tensor in tensors.items() if not beyond(name)}
    differ = {name: shape for name, shape in shapes.items() if name in given and given[name].shape != shape}
    wrong = {
        "missing": sorted(shapes.keys() - given.keys()),
        "superfluous": sorted(given.keys() - shapes.keys()),
        "of another shape": [f"{name} {list(given[name].shape)} for {list(shape)}" for name, shape in differ.items()],
    }
    if any(wrong.values()):
        found = "; ".join(f"{what} {_some(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"these are not the weights of FID's Inception-v3: {found}")
    turned = (given[name].transpose(2, 3, 1, 0) if len(shape) == 4 else given[name] for name, shape in shapes.items())
    return jax.tree_util.tree_unflatten(structure, [np.ascontiguousarray(leaf, np.float32) for leaf in turned])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def load(path: Path) -> Variables:
    """The variables from the published file.

    Raises:
      MissingDataError: there is no such file.
      ValueError: it cannot be read, or is another one.
    """
    try:
        return from_torch(read(path))
    except MissingDataError as error:
        raise MissingDataError(
            f"{error}: it is to be FID's Inception weights as published for PyTorch "
            "(pt_inception-2015-12-05-6726825d.pth), which you supply; nothing is downloaded"
        ) from error
