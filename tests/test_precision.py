"""Half precision computes products alone: sums, softmaxes, log-determinants and losses are float32."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from experiments.char_transformer import tiny as char_transformer
from experiments.digits_ddpm import tiny as digits
from experiments.glow_digits import tiny as glow
from models.denoiser import Denoiser
from models.dit import DiT
from models.flows.conditioners import MLPConditioner
from models.flows.glow import Glow
from models.unet import UNet
from tests.conftest import tiers
from training.mesh import Mesh
from training.plan import Plan
from training.step import named_key

NETS = {
    "unet": UNet(width=8, multipliers=(1, 2), blocks=1, attention=(8,)),
    "dit": DiT(width=16, depth=2, heads=2, patch=2),
}
EXPERIMENTS = {
    **{name: replace(digits, model=Denoiser(net=net, path=digits.model.path)) for name, net in NETS.items()},
    "transformer": char_transformer,
    "glow": glow,
}
HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
WIDE_ALONE = ("exp", "exp2", "log", "log1p", "reduce_sum", "cumsum", "cumlogsumexp", "rsqrt", "sqrt", "slogdet")


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(getattr(inner, "jaxpr", inner))


def traced(experiment: Any, precision: str) -> tuple[list[Any], Any, Any]:
    """All equations of the loss, its outputs' shapes and the state's."""
    plan = Plan(replace(experiment, precision=precision, mesh=Mesh(data=1)))
    state = plan.state_like
    variables = {"params": state.params, "state": state.model}

    def loss(variables: Any, batch: Any) -> Any:
        return experiment.loss(plan.model, variables, named_key(0, "train"), batch, jnp.zeros((), jnp.int32))

    jaxpr, out = jax.make_jaxpr(loss, return_shape=True)(variables, plan.batch_like)
    return list(equations(jaxpr.jaxpr)), out, state


@pytest.mark.parametrize("name", tiers(list(EXPERIMENTS), first=lambda name: name not in ("unet", "glow")))
def test_products_are_in_half_precision_and_nothing_that_sums(name):
    found, out, state = traced(EXPERIMENTS[name], "bfloat16")
    dtypes = [(e.primitive.name, {getattr(v.aval, "dtype", None) for v in e.outvars}) for e in found]
    halved = {name for name, kinds in dtypes if kinds & set(HALF)}
    assert {"dot_general", "conv_general_dilated"} & halved
    assert not set(WIDE_ALONE) & halved
    assert out.value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.average))} == {jnp.dtype("float32")}


def test_a_flows_log_determinant_is_single_precision():
    flow, x = Glow(levels=1, steps=2, conditioner=MLPConditioner(width=8, dtype="bfloat16")), jnp.ones((4, 4, 4, 2))
    params = jax.eval_shape(flow.init, jax.random.key(0), x)
    jaxpr, out = jax.make_jaxpr(flow.forward, return_shape=True)(params, x)
    assert [leaf.dtype for leaf in out] == [jnp.float32] * 2
    dtypes = {v.aval.dtype for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general" for v in e.outvars}
    assert jnp.dtype(jnp.bfloat16) in dtypes
