"""Autoregressive flows: exact inverses and log-determinants, the order of dependence, the cached inverse, classes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.flows.autoregressive import MADE, Autoregressive
from models.flows.causal import CausalTransformer
from models.flows.elementwise import Affine
from models.flows.flow import Flow
from models.flows.reshaping import Patches, Vectors
from models.flows.spline import RationalQuadratic
from models.flows.tarflow import TarFlow, TarFlowBlock
from tests.conftest import tiers
from tests.flows import quick_jit

CLASSES = 3
MASKED = MADE(width=24, depth=2, activation="tanh", num_classes=CLASSES)
NET = CausalTransformer(width=8, depth=2, heads=2, expansion=2, num_classes=CLASSES)
FLOWS = {
    "maf": (Autoregressive(net=MASKED), (6,)),
    "maf-exp": (Autoregressive(net=MASKED, transform=Affine(scale="exp")), (5,)),
    "maf-spline": (Autoregressive(net=MASKED, transform=RationalQuadratic(bins=4)), (6,)),
    "maf-one-number": (Autoregressive(net=MASKED), (1,)),
    "maf-narrow": (Autoregressive(net=MADE(width=3, depth=1)), (6,)),
    "maf-image": (Vectors(bijection=Autoregressive(net=MASKED)), (2, 2, 1)),
    "block": (TarFlowBlock(net=NET), (4, 3)),
    "block-one-token": (TarFlowBlock(net=NET), (1, 3)),
    "tarflow-odd": (TarFlow(patch=2, blocks=3, net=NET, remat="full"), (4, 2, 2)),
}
COUNT = 3  # examples


def drawn(shapes, scale):
    """Numbers for all leaves; what begins at zero would make the tests trivially true."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), float), shapes)


def case(flow, shape):
    """(parameters, x, condition) in the precision that is on."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(COUNT, *shape)), float)
    condition = {"label": jnp.arange(COUNT) % CLASSES}
    shapes = jax.eval_shape(flow.init, jax.random.key(0), x, condition)
    # Nothing bounds a TarFlow's α, and it is an exponent in every block.
    return drawn(shapes, 0.15 if isinstance(flow, TarFlow) else 0.3), x, condition


def jacobian(flow, params, x, condition):
    """∂z/∂x of every example, [B, n, n]."""

    def one(x, condition):
        alone = jax.tree.map(lambda leaf: leaf[None], condition)
        return flow.forward(params, x[None], alone)[0][0]

    return jax.vmap(jax.jacfwd(one))(x, condition).reshape(len(x), x[0].size, x[0].size)


@pytest.mark.parametrize("name", tiers(list(FLOWS), first=("maf", "maf-spline", "block", "tarflow-odd")))
def test_inverse_log_determinant_and_batch_in_double_precision(name):
    flow, shape = FLOWS[name]
    with jax.enable_x64(True):
        params, x, condition = case(flow, shape)
        forward, inverse = quick_jit(flow.forward), quick_jit(flow.inverse)
        z, logdet = forward(params, x, condition)
        back, minus = inverse(params, z, condition)
        other, other_minus = inverse(params, x, condition)
        again, other_logdet = forward(params, other, condition)
        order = np.asarray([2, 0, 1])
        shuffled, shuffled_logdet = forward(params, x[order], {"label": condition["label"][order]})
        sign, exact = np.linalg.slogdet(quick_jit(partial(jacobian, flow))(params, x, condition))
        for a, b, name in (
            (back, x, "x"),
            (again, x, "z"),
            (minus, -logdet, "log-determinants there and back"),
            (other_minus, -other_logdet, "log-determinants back and there"),
            (logdet, exact, "log-determinant"),
            (sign, np.ones(COUNT), "sign"),
            (shuffled, z[order], "batch"),
            (shuffled_logdet, logdet[order], "log-determinants of a batch"),
        ):
            assert a.dtype == b.dtype == np.float64, name
            np.testing.assert_allclose(a, b, atol=1e-8, rtol=1e-8, err_msg=name)
        if not isinstance(flow, TarFlowBlock) or shape[0] > 1:  # the first token is never moved
            assert float(jnp.abs(z - x).max()) > 0.1


@pytest.mark.parametrize("name", ["maf", "maf-exp", "maf-spline", "maf-narrow", "block"])
def test_jacobian_is_triangular_in_the_stated_order(name):
    flow, shape = FLOWS[name]
    with jax.enable_x64(True):
        found = np.asarray(quick_jit(partial(jacobian, flow))(*case(flow, shape)))
    n, width = found.shape[1], shape[-1] if name == "block" else 1  # of a token
    of = np.arange(n) // width
    before = of[:, None] < of[None, :]  # what comes later in the sequence
    unmoved = before | ((of[:, None] == of[None, :]) & ~np.eye(n, dtype=bool))
    np.testing.assert_array_equal(found[:, unmoved], 0.0)
    if name != "maf-narrow":  # every coordinate is read by all that come after it
        assert (np.abs(found[:, ~(before | (of[:, None] == of[None, :]))]).max(0) > 1e-6).all()


def test_cached_inverse_equals_the_naive_one():
    flow, shape = TarFlow(patch=1, blocks=2, net=NET), (4, 2, 2)
    with jax.enable_x64(True):
        params, z, condition = case(flow, shape)
        run = quick_jit(lambda flow: flow.inverse(params, z, condition), static_argnums=0)
        (x, logdet), naive = run(flow), run(replace(flow, cached=False))
        there = quick_jit(flow.forward)(params, x, condition)
        for a, b in zip((x, logdet, *there), (*naive, z, -logdet), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["maf", "block"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_outside(name):
    flow, shape = FLOWS[name]
    params, x, condition = case(flow, shape)
    low = replace(flow, net=flow.net.clone(dtype="bfloat16"))
    for side in ("forward", "inverse"):
        of = lambda flow: quick_jit(getattr(flow, side)).lower(params, x, condition)  # noqa: B023, E731
        assert "bf16" in of(low).as_text()
        assert "bf16" not in of(flow).as_text()
        assert {out.dtype for out in jax.tree.leaves(of(low).out_info)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["maf", "maf-one-number", "block"])
def test_label_changes_the_result_and_no_label_is_one_row(name):
    flow, shape = FLOWS[name]
    params, x, _ = case(flow, shape)
    forward = quick_jit(lambda condition: flow.forward(params, x, condition))
    of = lambda *labels: forward({"label": jnp.asarray(labels)})  # noqa: E731
    for a, b in zip(forward(None), of(-1, -1, -1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for other in (of(1, 1, 1), forward(None)):
        assert (jnp.abs(of(0, 0, 0)[0] - other[0]).reshape(COUNT, -1).max(1) > 1e-4).all()
    # Those of one class do not depend on which class the others are of.
    np.testing.assert_allclose(of(0, 1, -1)[0][0], of(0, 2, 2)[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", tiers(["maf", "maf-spline", "tarflow-odd"], first=("maf", "maf-spline")))
def test_starts_as_the_identity(name):
    flow, shape = FLOWS[name]
    x = jax.random.normal(jax.random.key(1), (COUNT, *shape))
    shapes = jax.eval_shape(flow.init, jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))

    def begin(x):
        # These bits are drawn by an instruction of XLA's own: the usual ones take it seconds to compile.
        return flow.forward(flow.init(jax.random.key(0, impl="unsafe_rbg"), x), x)

    z, logdet = quick_jit(begin)(x)
    np.testing.assert_allclose(z, x, atol=1e-5)
    np.testing.assert_allclose(logdet, 0.0, atol=1e-4)


def test_patches_are_the_tokens_they_say():
    image = jnp.arange(2 * 4 * 6 * 2, dtype=jnp.float32).reshape(2, 4, 6, 2)
    patches = Patches(patch=2, bijection=TarFlowBlock(net=NET))
    tokens, rest = patches.open(image)
    assert tokens.shape == (2, 6, 8)
    np.testing.assert_array_equal(tokens[:, 4].reshape(2, 2, 2, 2), image[:, 2:4, 2:4])
    np.testing.assert_array_equal(patches.close(tokens, rest), image)


@pytest.mark.parametrize(
    ("flow", "shape"),
    [FLOWS["maf"], (Patches(patch=2, bijection=FLOWS["block"][0]), (2, 4, 1))],
    ids=["maf", "tarflow"],
)
def test_gradient_from_the_output_alone_is_the_gradient(flow, shape):
    with jax.enable_x64(True):
        params, x, condition = case(flow, shape)

        def both(params, x):
            (z, logdet), vjp = jax.vjp(lambda p, x: flow.forward(p, x, condition), params, x)
            bars = (jnp.sin(z), jnp.ones_like(logdet))
            back, x_bar, params_bar, condition_bar = flow.backward(params, z, condition, *bars)
            assert condition_bar == {}  # a label has no gradient
            return (back, params_bar, x_bar), (x, *vjp(bars))

        found, expected = quick_jit(both)(params, x)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["maf", "tarflow-odd"])
def test_in_a_flow_classes_are_found_and_all_is_trained(name):
    bijection, shape = FLOWS[name]
    flow = Flow(bijection=bijection)
    assert flow.num_classes == CLASSES
    batch = {"x": jnp.zeros((COUNT, *shape)), "label": jnp.arange(COUNT)}
    variables = jax.eval_shape(flow.init, jax.random.key(0), batch)
    assert variables["state"] == {}
    decoded = jax.eval_shape(flow.decode, variables, batch["x"], {"label": batch["label"]})
    assert decoded.shape == batch["x"].shape


def test_wrong_sizes_and_settings_are_refused(key):
    images, maf = jnp.zeros((2, 4, 6, 1)), Autoregressive(net=MASKED)
    for act in (lambda: maf.init(key, images), lambda: maf.forward({}, images), lambda: maf.inverse({}, images)):
        with pytest.raises(ValueError, match=r"takes vectors \[B, D\], and this is \[2, 4, 6, 1\]; Vectors\("):
            act()
    flow = TarFlow(patch=4, blocks=2, net=NET)
    for act in (lambda: flow.init(key, images), lambda: flow.forward({}, images), lambda: flow.inverse({}, images)):
        with pytest.raises(ValueError, match="patches of 4x4 takes images whose sides 4 divides, not 4x6"):
            act()
    with pytest.raises(ValueError, match="not arrays with 1 axes"):
        flow.init(key, jnp.zeros((2, 16)))
    with pytest.raises(ValueError, match="patch=0"):
        Patches(patch=0, bijection=flow)
    with pytest.raises(ValueError, match="at least one block, got blocks=0"):
        TarFlow(blocks=0)
    with pytest.raises(ValueError, match="heads=3 must divide a transformer's width=8"):
        TarFlowBlock(net=NET.clone(heads=3)).init(key, jnp.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="at least one hidden layer, got depth=0"):
        Autoregressive(net=MADE(depth=0)).init(key, jnp.zeros((2, 4)))
