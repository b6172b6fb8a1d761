"""A flow: a density on data that is exact, and exact samples of it.

    (1)  y = x + noise within its bin, at a cost of −log q(y | x)            models/flows/dequantization.py
    (2)  h = preprocess(y),  z = f(h)                                        two bijections
    (3)  log P(x) ≥ log p_Z(z) + log|det ∂f/∂h| + log|det ∂h/∂y| − log q(y | x)
    (4)  x = preprocess⁻¹(f⁻¹(z)),  z from the prior

For continuous data (1) changes nothing and (3) is an equality and a density. No constant is written by hand: what
scaling to [0, 1] costs is the log-determinant of `preprocess`, and the width of a bin is in q.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from models.flows.bijection import Bijection, merge, split
from models.flows.combinators import Identity
from models.flows.dequantization import Continuous, Dequantization
from models.flows.linear import check_invertible
from models.flows.priors import Normal, Prior
from models.model import Batch, Condition, Model, Variables


@dataclass(frozen=True, kw_only=True)
class Flow(Model):
    """Dequantisation, preprocessing, bijection, prior. z has the shape of x."""

    bijection: Bijection
    prior: Prior = field(default_factory=Normal)
    preprocess: Bijection = field(default_factory=Identity)
    dequantize: Dequantization = field(default_factory=Continuous)
    init_batches: int = 1  # of the run's first batches, whose statistics parameters begin with

    def __post_init__(self) -> None:
        if self.init_batches < 1:
            raise ValueError(f"parameters begin from at least one batch, got init_batches={self.init_batches}")

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        x = batch["x"]
        _check(x)
        condition = self.condition(batch)
        keys = jax.random.split(key, 5)
        tree: dict[str, Any] = {"dequantize": self.dequantize.init(keys[0], x, condition)}
        y, _ = self.dequantize(tree["dequantize"], jax.random.split(keys[1], x.shape[0]), x, condition)
        tree["preprocess"] = self.preprocess.init(keys[2], y, condition)
        h, _ = self.preprocess.forward(tree["preprocess"], y, condition)
        condition = _with_keys(condition, jax.random.split(keys[3], x.shape[0]))
        tree["bijection"] = self.bijection.init(keys[4], h, condition)
        z, _ = self.bijection.forward(tree["bijection"], h, condition)
        if z.shape != x.shape:
            raise ValueError(f"a flow's latents must have the shape of data, {x.shape[1:]}; these have {z.shape[1:]}")
        tree["prior"] = self.prior.init(z)
        params, constants = split(tree)
        return {"params": params, "state": {"constants": constants} if constants else {}}

    def log_prob(
        self, variables: Variables, keys: Key[Array, " b"], x: Float[Array, "b *s"], condition: Condition = None
    ) -> Float[Array, " b"]:
        """Eq. (3), in nats of x's own units; for levels, of their probability.

        Args:
          keys: one an example: of its dequantisation, and of a trace's estimate where the bijection is continuous.
          condition: `label` [B], where the flow has classes.

        Raises:
          TypeError: x is not floating-point.
        """
        return self.observe(variables, keys, x, condition)[0]

    def observe(
        self, variables: Variables, keys: Key[Array, " b"], x: Float[Array, "b *s"], condition: Condition = None
    ) -> tuple[Float[Array, " b"], dict[str, Array]]:
        """Eq. (3), and what the bijection has to say of this pass (models/flows/bijection.py)."""
        _check(x)
        tree = self._tree(variables)
        filling, own = folded(keys, 0), folded(keys, 1)
        y, minus_log_q = self.dequantize(tree.get("dequantize", {}), filling, x, condition)
        h, scaled = self.preprocess.forward(tree.get("preprocess", {}), y, condition)
        z, logdet, seen = self.bijection.observe(tree.get("bijection", {}), h, _with_keys(condition, own))
        return self.prior.log_prob(tree.get("prior", {}), z, condition) + logdet + scaled + minus_log_q, seen

    def encode(
        self,
        variables: Variables,
        keys: Key[Array, " b"],
        x: Float[Array, "b *s"],
        condition: Condition = None,
        dequantize: bool = True,
    ) -> Float[Array, "b *s"]:
        """z of eq. (2). Without `dequantize`, of levels as they stand, in the middle of their bins."""
        _check(x)
        tree = self._tree(variables)
        filling, own = folded(keys, 0), folded(keys, 1)
        y = self.dequantize(tree.get("dequantize", {}), filling, x, condition)[0] if dequantize else x
        h = self.preprocessed(variables, y, condition)
        return self.bijection.forward(tree.get("bijection", {}), h, _with_keys(condition, own))[0]

    def decode(self, variables: Variables, z: Float[Array, "b *s"], condition: Condition = None) -> Any:
        """x of eq. (4) from z: anywhere within a bin, where data has levels."""
        tree = self._tree(variables)
        h = self.bijection.pull(tree.get("bijection", {}), z, condition)
        return self.unprocessed(variables, h, condition)

    def preprocessed(self, variables: Variables, y: Float[Array, "b *s"], condition: Condition = None) -> Any:
        """h of eq. (2), of data that needs no dequantisation."""
        return self.preprocess.forward(self._tree(variables).get("preprocess", {}), y, condition)[0]

    def unprocessed(self, variables: Variables, h: Float[Array, "b *s"], condition: Condition = None) -> Any:
        """y of eq. (2) from h."""
        return self.preprocess.pull(self._tree(variables).get("preprocess", {}), h, condition)

    def log_prob_of_preprocessed(
        self, variables: Variables, keys: Key[Array, " b"], h: Float[Array, "b *s"], condition: Condition = None
    ) -> Float[Array, " b"]:
        """log p_Z(z) + log|det ∂f/∂h|: the density of h, in nats of h's units. The keys are a random trace's."""
        tree = self._tree(variables)
        z, logdet = self.bijection.forward(tree.get("bijection", {}), h, _with_keys(condition, keys))
        return self.prior.log_prob(tree.get("prior", {}), z, condition) + logdet

    def latents(
        self,
        variables: Variables,
        keys: Key[Array, " b"],
        shape: tuple[int, ...],
        condition: Condition = None,
        temperature: float = 1.0,
    ) -> Float[Array, "b *shape"]:
        """z of eq. (4), one draw for each key."""
        return self.prior.sample(self._tree(variables).get("prior", {}), keys, shape, condition, temperature)

    def condition(self, batch: Batch) -> Condition:
        """What of a batch the flow is told: its classes, if it has any."""
        return {"label": batch["label"]} if self.num_classes and "label" in batch else None

    @property
    def data_batches(self) -> int:
        return self.init_batches

    @property
    def num_classes(self) -> int:
        """How many classes the prior or a network is conditioned on; 0 if none.

        Raises:
          ValueError: they are not the same number.
        """
        found = _classes((self.bijection, self.prior, self.preprocess, self.dequantize))
        if len(found) > 1:
            raise ValueError(f"parts of the flow are conditioned on different numbers of classes: {sorted(found)}")
        return next(iter(found), 0)

    @property
    def bin_width(self) -> float | None:
        """The step of the lattice that data is taken to lie on; None for continuous data."""
        return self.dequantize.bin_width

    def check(self, variables: Variables) -> None:
        check_invertible(self._tree(variables))

    def _tree(self, variables: Variables) -> dict[str, Any]:
        return merge(variables["params"], variables["state"].get("constants", {}))


def folded(keys: Key[Array, " b"], number: int) -> Key[Array, " b"]:
    """Another stream of each example's randomness."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _with_keys(condition: Condition, keys: Key[Array, " b"]) -> Condition:
    return {**(condition or {}), "keys": keys}


def _check(x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"a flow takes floating-point data, images in [-1, 1], and this is {x.dtype}; data/pixels.py scales levels"
        )


def _classes(value: Any) -> set[int]:
    """Every `num_classes` of the parts, but 0."""
    if isinstance(value, tuple):
        return set().union(*map(_classes, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return set()
    names = [f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name")]
    own = {getattr(value, name) for name in names if name == "num_classes"} - {0}
    return own.union(*(_classes(getattr(value, name)) for name in names))
