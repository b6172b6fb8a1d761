"""Drawing from a model in batches over the mesh, for train.py, sample.py and metrics alike."""

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from models.model import Model, Variables
from models.sharding import made_whole, spread
from models.stack import BLOCKS
from samplers.sampler import Sampler, sample_keys
from samplers.solver import Samples
from training.experiment import without_remat
from training.mesh import by_batch, replicated


class Drawn(NamedTuple):
    """Samples on the host."""

    x: Float[np.ndarray, "n *s"]
    trajectory: Float[np.ndarray, "states n *s"] | None = None
    nfe: Int[np.ndarray, " n"] | None = None  # network calls of each sample, where they differ


@dataclass
class Drawer:
    """A sampler bound to a model and a mesh, compiled once for each batch size it is asked for.

    Sample i of a key is the same in every batch size and on every mesh: its own key is fold_in(key, i).
    """

    model: Model
    sampler: Sampler
    shape: tuple[int, ...]
    mesh: jax.sharding.Mesh
    batch_size: int = 256
    compile_seconds: float = 0.0  # spent so far
    _compiled: dict[Any, Any] = field(default_factory=dict)

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        n: int,
        condition: Any = None,
        trajectory: bool = False,
        first: int = 0,
    ) -> Drawn:
        """Draws samples `first` … `first` + n − 1, as host arrays; sample i is the same whatever else is drawn.

        Args:
          condition: a dict of arrays [n, …].
          trajectory: also every state from noise to data.

        Raises:
          ValueError: the sampler cannot draw from such a model, or under such a condition.
        """
        # Equal batches, the last padded: one compilation, and a whole number of samples on every device.
        size = min(self.batch_size, n)
        size += -size % self.mesh.size
        condition = jax.tree.map(np.asarray, condition)
        parts = []
        for start in range(0, n, size):
            within = np.minimum(np.arange(start, start + size), n - 1)
            indices = np.arange(first + start, first + start + size, dtype=np.int32)
            part = jax.tree.map(lambda leaf: leaf[within], condition)  # noqa: B023
            arguments = (variables, key, *spread((indices, part), by_batch(self.mesh)))
            parts.append(jax.device_get(self._compile(arguments, trajectory)(*arguments)))
        x = np.concatenate([part.x for part in parts])[:n]
        nfe = None if parts[0].nfe is None else np.concatenate([part.nfe for part in parts])[:n]
        states = np.concatenate([part.trajectory for part in parts], axis=1)[:, :n] if trajectory else None
        return Drawn(x, states, nfe)

    def _compile(self, arguments: Any, trajectory: bool) -> Any:
        shapes = jax.tree.map(lambda leaf: leaf.shape, arguments[2:])
        where = (str(shapes), trajectory)
        if where not in self._compiled:
            began = time.perf_counter()

            model = without_remat(self.model)  # a sampler may differentiate forwards

            def draw(variables: Variables, key: Any, indices: Any, condition: Any) -> Samples:
                with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                    variables = made_whole(variables, model.split, but=BLOCKS)
                    return self.sampler(model, variables, sample_keys(key, indices), condition, self.shape, trajectory)

            whole, split = replicated(self.mesh), by_batch(self.mesh)
            # Parameters stay where they are; samples come whole to every device, and so to every process.
            where_held = jax.tree.map(lambda leaf: _place(leaf, whole), arguments[0])
            jitted = jax.jit(draw, in_shardings=(where_held, whole, split, split), out_shardings=whole)
            self._compiled[where] = jitted.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[where]


def _place(leaf: Any, whole: NamedSharding) -> NamedSharding:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and sharding.mesh == whole.mesh else whole
