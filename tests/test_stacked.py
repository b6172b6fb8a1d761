"""Depth as a scan: it equals a loop, its backward passes agree, and the reversible one keeps nothing."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.flows.bijection import merge, split
from models.flows.combinators import Chain
from models.flows.conditioners import MLPConditioner
from models.flows.coupling import Coupling
from models.flows.elementwise import Affine
from models.flows.glow import Glow
from models.flows.linear import ActNorm, Invertible1x1
from models.flows.permutations import FixedPermutation, Reverse
from models.flows.reshaping import Vectors
from models.flows.stacked import Stacked
from tests.conftest import tiers
from tests.flows import perturbed, quick_jit

DEPTH = 6
KEY = jax.random.key(1, impl="unsafe_rbg")  # quick to compile
BLOCK = Chain(
    parts=(ActNorm(), Invertible1x1(), FixedPermutation(), Coupling(conditioner=MLPConditioner(width=8, depth=1)))
)
SAVE = Stacked(block=BLOCK, depth=DEPTH)
MODES = {
    **{name: replace(SAVE, remat=name) for name in ("dots", "full", "group(4)", "sqrt", "nested", "binomial(2)")},
    "reversible": replace(SAVE, remat="reversible"),
    "reversible, anchors": replace(SAVE, remat="reversible(2)"),
    "reversible, all anchors": replace(SAVE, remat="reversible(1)"),
}


def start(dtype, size=6, scale=0.3):
    x = jax.random.normal(jax.random.key(0), (5, size), dtype)
    trained, constants = split(perturbed(quick_jit(SAVE.init)(KEY, x), KEY, scale))
    return merge(jax.tree.map(lambda leaf: leaf.astype(dtype), trained), constants), x


def gradients(bijection, params, x, condition=None):
    """Of a function of z and the log-determinant, with respect to parameters, x and the condition's floats."""
    trained, constants = split(params)
    floats, rest = split(condition or {})

    def value(trained, x, floats):
        z, logdet = bijection.forward(merge(trained, constants), x, merge(floats, rest) or None)
        return jnp.sum(jnp.sin(z)) + jnp.sum(jnp.cos(logdet))

    return quick_jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(trained, x, floats)


@functools.cache
def saved():
    """Parameters, x and the gradients of autodiff, in the precision that is on."""
    params, x = start(jnp.float64)
    return params, x, gradients(SAVE, params, x)


def test_scan_equals_loop():
    with jax.enable_x64(True):
        params, x = start(jnp.float64)
        z, logdet = quick_jit(SAVE.forward)(params, x)
        back, minus = quick_jit(SAVE.inverse)(params, z)
        h, sum_ = x, 0.0
        for i in range(DEPTH):
            h, change = BLOCK.forward(jax.tree.map(lambda leaf: leaf[i], params), h)  # noqa: B023
            sum_ = sum_ + change
        np.testing.assert_allclose(z, h, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(logdet, sum_, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(minus, -logdet, atol=1e-10)


def test_layers_begin_different():
    """Each layer has its own draw, and actnorm the statistics of what reaches it."""
    x = 5.0 + 3.0 * jax.random.normal(jax.random.key(0), (64, 6))
    params = quick_jit(SAVE.init)(KEY, x)
    orders = np.asarray(params["2"]["order"])
    assert len({tuple(row) for row in orders}) > 1
    assert np.abs(params["0"]["mean"][0] - 5.0).max() < 1.5
    assert np.abs(params["0"]["mean"][1]).max() < 1e-3


@pytest.mark.parametrize("mode", tiers(list(MODES), first=("full", "reversible", "reversible, anchors", "sqrt")))
def test_backward_passes_agree_in_double_precision(mode):
    with jax.enable_x64(True):
        params, x, expected = saved()
        found = gradients(MODES[mode], params, x)
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * largest), expected, found)


def test_anchors_keep_single_precision_right():
    """64 layers that stretch: without anchors the gradient is off by far more than with them."""
    block = Chain(
        parts=(Coupling(transform=Affine(scale="tanh"), conditioner=MLPConditioner(width=16, depth=1)), Reverse())
    )
    save = Stacked(block=block, depth=64)
    x = jax.random.normal(jax.random.key(0), (16, 8))
    params = perturbed(quick_jit(save.init)(KEY, x), KEY, 0.05)
    _, expected = gradients(save, params, x)

    def error(bijection):
        _, found = gradients(bijection, params, x)
        squares = jax.tree.map(lambda a, b: (np.sum((a - b) ** 2.0), np.sum(a**2.0)), expected, found)
        wrong, all_ = np.sum(np.asarray(jax.tree.leaves(squares)).reshape(-1, 2), axis=0)
        return float(np.sqrt(wrong / all_))

    with_anchors, without = replace(save, remat="reversible(4)"), replace(save, remat="reversible")
    assert error(with_anchors) < 1e-4
    assert error(without) > 10 * error(with_anchors)
    said = [float(quick_jit(b.observe)(params, x)[2]["reconstruction_error"]) for b in (with_anchors, without)]
    assert said[0] < 1e-5 < said[1]  # the log tells which of the two can be trusted


def test_a_condition_has_its_gradient_too():
    block = Chain(parts=(Coupling(conditioner=MLPConditioner(width=8, depth=1, num_classes=3)), Reverse()))
    save = Stacked(block=block, depth=4)
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (5, 6), jnp.float64)
        condition = {"given": jnp.cos(x[:, :2]), "label": jnp.asarray([0, 1, 2, -1, 0])}
        params = perturbed(save.init(KEY, x, condition), KEY)
        expected = gradients(save, params, x, condition)
        found = gradients(replace(save, remat="reversible(2)"), params, x, condition)
        assert np.abs(expected[1][2]["given"]).max() > 1e-3
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), expected, found)


@pytest.mark.thorough
def test_glow_is_reversible_as_a_whole():
    """Stacks within factored-out levels, of images."""
    glow = Glow(levels=2, steps=2, conditioner=MLPConditioner(width=6, depth=1))
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (16, 4, 4, 1), jnp.float64)
        params = perturbed(quick_jit(glow.init)(KEY, x), KEY, 0.1)
        expected = gradients(glow, params, x)
        found = gradients(replace(glow, remat="reversible(1)"), params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8), expected, found)


def temporary(remat, depth, size=3072, width=256, batch=256):
    """MiB that the compiled gradient needs besides its arguments and results; nothing is run."""
    block = Chain(parts=(Coupling(conditioner=MLPConditioner(width=width, depth=1)), Reverse()))
    stacked = Vectors(bijection=Stacked(block=block, depth=depth, remat=remat))
    x = jax.ShapeDtypeStruct((batch, size), jnp.float32)
    params = jax.eval_shape(stacked.init, jax.random.key(0), x)
    loss = lambda z, logdet: jnp.sum(z**2) - jnp.sum(logdet)  # noqa: E731
    gradient = jax.grad(lambda p, x: loss(*stacked.forward(p, x)))
    analysis = jax.jit(gradient).lower(params, x).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20


def test_memory_of_the_reversible_backward_pass_does_not_grow():
    small, large = (temporary("reversible", depth) for depth in (8, 32))
    assert (large - small) / 24 <= 0.1
    saved = temporary("none", 32)
    assert saved > 4 * large


def test_wrong_settings():
    with pytest.raises(ValueError, match="must divide depth=6"):
        replace(SAVE, remat="reversible(4)")
    with pytest.raises(ValueError, match=r"unknown remat policy 'reversable'; .*binomial\(slots\), reversible"):
        replace(SAVE, remat="reversable")
