"""What `--features X` names: the feature function that a run's samples are compared with data in.

    pixels            the images as they are
    classifier        of a small classifier of the same data (metrics/classifier.py)
    inception:FILE    pool3 of Inception-v3, FILE the weights as published for PyTorch (models/inception.py)
    RUN               a finished run of an Embedder: √D·h/‖h‖

An embedding is compared by its direction, so its length is left out; √D makes the mean square of a feature 1, whatever
D. Both networks' names hold a digest of their parameters: numbers in features of one name can be compared.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from data.dataset import Dataset
from metrics.classifier import NAME, classifier
from metrics.examples import over_examples
from metrics.features import PIXELS, Features, Learned
from models import inception
from models.embedder import Embedder, unit
from models.model import Variables
from training.errors import UserError
from training.handover import finished
from training.mesh import Mesh, replicated

FLAG = "--features"
BATCH = 64  # images that a network is shown at once


def features_of(name: str, data: Dataset) -> Features:
    """The feature function of that name, for pictures of `data`.

    Raises:
      UserError: there is none, or it is not of images like these.
      MissingDataError: there is no such file of weights.
    """
    images = data.pictured
    if name == "pixels":
        return PIXELS
    if name == "classifier":
        if not images.num_classes:
            raise UserError(f"{FLAG} {name}: a classifier is fitted on labels, and {type(images).__name__} has none")
        return Learned(NAME, 64, lambda x: classifier(images).features(x))
    if name.startswith("inception:"):
        return _of_inception(name, images.shape)
    if not Path(name).is_dir():
        raise UserError(
            f"{FLAG} {name}: there is no such folder; features are pixels, classifier, inception:FILE or the folder of "
            "a finished run of an Embedder"
        )
    return _of_run(name, images.shape)


def _of_inception(name: str, shape: tuple[int, ...]) -> Features:
    file = name.removeprefix("inception:")
    if not file:
        raise UserError(f"{FLAG} {name} names no file of weights; it is inception:FILE")
    try:
        inception.check_shape(shape)
        weights = inception.load(Path(file))
    except ValueError as error:
        raise UserError(f"{FLAG} {name}: {error}") from error
    network: Any = inception.Inception()
    own = f"{inception.FEATURES} features of Inception-v3 (digest {_digest(weights)[:8]})"
    placed = jax.device_put(weights, replicated(Mesh().build()))
    return _of_network(own, inception.FEATURES, lambda variables, x: network.apply(variables, x), placed)


def _of_run(name: str, shape: tuple[int, ...]) -> Features:
    run = finished(FLAG, name)
    model = run.model
    if not isinstance(model, Embedder):
        raise UserError(f"{FLAG} {name}: this is a run of a {type(model).__name__}; features are those of an Embedder")
    seen = run.experiment.data.shape
    if seen != shape:
        raise UserError(
            f"{FLAG} {name}: this run embeds examples of shape {list(seen)}, and what is measured has the shape "
            f"{list(shape)}"
        )
    size = model.net.features

    def scaled(variables: Variables, x: Float[Array, "b *s"]) -> Float[Array, "b d"]:
        h = model.embed(variables, x)
        # The direction of what is not finite is 0, a direction like any other.
        return jnp.where(jnp.isfinite(h).all(1, keepdims=True), np.sqrt(size) * unit(h), jnp.nan)

    own = f"{size} features of {run.folder} (digest {run.state_digest[:8]})"
    return _of_network(own, size, scaled, run.averaged(Mesh().build()))


def _of_network(
    name: str, length: int, function: Callable[[Variables, Array], Array], variables: Variables
) -> Features:
    def of_batch(variables: Variables, batch: dict[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b d"]:
        return function(variables, batch["x"])

    def of_all(x: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n d"]:
        return over_examples(of_batch, variables, {"x": np.asarray(x, np.float32)}, seed=0, batch_size=BATCH)

    return Learned(name, length, of_all)


def _digest(variables: Variables) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
