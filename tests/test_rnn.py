"""Recurrent networks: PyTorch's numbers, finite differences, truncation, checkpointing, padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.recurrence import over_time, recur
from models.rnn import GRU, LSTM, RNN
from tests.conftest import tiers
from tests.torch_arrays import recurrent, torch_case

CELLS = {
    "rnn": RNN(width=6),
    "relu": RNN(width=6, activation="relu"),
    "lstm": LSTM(width=6),
    "lstm-norm": LSTM(width=6, layer_norm=True),
    "gru": GRU(width=6),
    "gru-before": GRU(width=6, reset="before"),
    "gru-before-norm": GRU(width=6, reset="before", layer_norm=True),
    "deep": LSTM(width=6, depth=2),
    "both-ways": GRU(width=6, depth=2, bidirectional=True),
}


def case(net, dtype=jnp.float32, steps=7):
    """(variables, x): every parameter drawn, biases and scales among them."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, steps, 4)), dtype)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), dtype), shapes), x


def near(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


@pytest.mark.parametrize("deep", [False, True], ids=["one", "deep"])
@pytest.mark.parametrize(("name", "cls"), [("rnn", RNN), ("lstm", LSTM), ("gru", GRU)])
def test_outputs_and_gradients_are_pytorchs(name, cls, deep):
    torch = torch_case(name + ("_deep" if deep else ""))
    net = cls(width=8, depth=1 + deep, bidirectional=deep)
    convert = lambda weights: recurrent(weights, net.depth, deep, cls.GATES)  # noqa: E731
    params, x = jax.tree.map(jnp.asarray, (convert(torch["weight"]), torch["input"]["x"]))
    loss = lambda params, x: jnp.sum(net.apply({"params": params}, x)[0] ** 2)  # noqa: E731
    near(jax.jit(net.apply)({"params": params}, x)[0], torch["output"], 1e-5)
    gradients, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    near(of_x, torch["input_gradient"]["x"], 1e-5)
    expected = convert(torch["weight_gradient"])
    for key, value in expected.items():
        # Both of PyTorch's biases have the gradient of the one here; a sum of weights is no sum of gradients.
        if not key.endswith("_bias"):
            near(gradients[key], value, 1e-5)
    for layer in range(net.depth):
        near(gradients[f"forwards_{layer}_bias"], torch["weight_gradient"][f"bias_ih_l{layer}"], 1e-5)


@pytest.mark.parametrize("net", tiers(CELLS, first=("gru-before",)))
def test_gradients_are_finite_differences(net):
    """In double precision, of all parameters and inputs, under every policy."""

    def loss(remat, point):
        h, state = net.clone(remat=remat).apply(*point)
        return jnp.sum(jnp.sin(h)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))

    with jax.enable_x64(True):
        point, rng = case(net, jnp.float64, steps=5), np.random.default_rng(2)
        way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), point)
        value = jax.jit(partial(loss, "none"))
        up, down = (value(jax.tree.map(lambda a, b: a + step * b, point, way)) for step in (1e-5, -1e-5))  # noqa: B023
        for remat in ("none", "full", "group(3)", "sqrt", "nested", "binomial(2)"):
            gradient = jax.jit(jax.grad(partial(loss, remat)))(point)
            slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
            np.testing.assert_allclose((up - down) / 2e-5, slope, rtol=1e-6)


def test_weight_gradients_of_one_product_are_those_of_the_scan():
    def cell(multiply, params, carry, x):
        new = jnp.tanh(params["d"] * multiply("u", carry) + x)
        return multiply("v", new * carry) * x + carry, new

    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        weights = {name: jnp.asarray(rng.normal(size=(4, 4))) for name in "uv"}
        rest = (
            {"d": jnp.asarray(0.7)},
            weights,
            jnp.asarray(rng.normal(size=(2, 4))),
            (jnp.asarray(rng.normal(size=(6, 2, 4))), {name: jnp.asarray(rng.normal(size=(6, 2, 4))) for name in "uv"}),
        )

        def plain(params, weights, carry, xs):
            body = lambda c, x: cell(lambda name, y: y @ weights[name] + x[1][name], params, c, x[0])  # noqa: E731
            return jax.lax.scan(body, carry, xs)

        loss = lambda run: lambda *a: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run(*a)))  # noqa: E731
        ours = jax.grad(loss(lambda *a: recur(cell, *a)), (0, 1, 2, 3))(*rest)
        near(ours, jax.grad(loss(plain), (0, 1, 2, 3))(*rest), 1e-12)
        # In parts that do not divide the steps, and from the last to the first.
        parts = lambda *a: over_time(cell, *a, reverse=True, remat="group(4)")  # noqa: E731
        backwards = lambda p, w, c, xs: plain(p, w, c, jax.tree.map(lambda leaf: leaf[::-1], xs))  # noqa: E731
        flipped = lambda run: lambda *a: (lambda c, y: (c, y[::-1]))(*run(*a))  # noqa: E731
        near(parts(*rest), flipped(backwards)(*rest), 1e-12)
        near(jax.grad(loss(parts), (0, 1, 2, 3))(*rest), jax.grad(loss(flipped(backwards)), (0, 1, 2, 3))(*rest), 1e-12)


@pytest.mark.parametrize("net", tiers(CELLS, first=("relu", "lstm", "gru-before")))
def test_truncation_by_the_whole_window_is_none(net):
    variables, x = case(net)
    loss = lambda net: lambda v, x: jnp.sum(net.apply(v, x)[0] ** 2)  # noqa: E731
    gradient = lambda net: jax.jit(jax.grad(loss(net), (0, 1)))(variables, x)  # noqa: E731
    full, truncated = gradient(net), gradient(net.clone(window=3))
    near(gradient(net.clone(window=7)), full, 1e-6)
    assert float(jnp.abs(truncated[1] - full[1]).max()) > 1e-3
    near(jax.jit(net.clone(window=3).apply)(variables, x), jax.jit(net.apply)(variables, x), 1e-6)


def test_no_gradient_flows_past_a_window():
    net = LSTM(width=6, window=3)
    variables, x = case(net)
    of_last = jax.grad(lambda x: jnp.sum(net.apply(variables, x)[0][:, 6]))(x)  # windows are 0-2, 3-5 and 6
    assert not np.any(of_last[:, :6])
    assert np.all(np.any(of_last[:, 6:], axis=2))


@pytest.mark.parametrize("net", tiers(CELLS, first=("both-ways",)))
def test_padding_changes_nothing(net):
    variables, x = case(net)
    lengths = jnp.asarray([7, 4, 0])
    padded = jnp.where(jnp.arange(7)[None, :, None] < lengths[:, None, None], x, 1e3)
    run = jax.jit(lambda v, x, lengths: net.apply(v, x, None, lengths))
    apply = jax.jit(net.apply)
    h, state = run(variables, padded, lengths)
    assert np.isfinite(h).all()
    whole, last = apply(variables, x[:1])
    near(h[:1], whole, 1e-6)
    near(jax.tree.map(lambda leaf: leaf[:, :1], state), last, 1e-6)
    short, last = apply(variables, x[1:2, :4])
    near(h[1:2, :4], short, 1e-6)
    near(jax.tree.map(lambda leaf: leaf[:, 1:2], state), last, 1e-6)
    near(jax.tree.map(lambda leaf: leaf[:, 2], state), jax.tree.map(lambda leaf: leaf[:, 2], net.empty(3, 7)), 0.0)
    loss = lambda v, x: jnp.sum(run(v, x, lengths)[0] ** 2)  # noqa: E731
    of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(variables, padded)
    assert not np.any(of_x[1, 4:])
    assert not np.any(of_x[2])
    alone = lambda v: jnp.sum(net.apply(v, x[:1])[0] ** 2) + jnp.sum(net.apply(v, x[1:2, :4])[0] ** 2)  # noqa: E731
    for a, b in zip(jax.tree.leaves(of_params), jax.tree.leaves(jax.jit(jax.grad(alone))(variables)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_way_back_is_the_way_there_of_the_reversed():
    net = GRU(width=6, bidirectional=True)
    variables, x = case(net)
    params = variables["params"]
    swapped = {
        key.replace("forwards", "other").replace("backwards", "forwards").replace("other", "backwards"): value
        for key, value in params.items()
    }
    h, _ = net.apply(variables, x)
    mirrored, _ = net.apply({"params": swapped}, x[:, ::-1])
    near(h, jnp.concatenate([mirrored[:, ::-1, 3:], mirrored[:, ::-1, :3]], axis=2), 1e-6)
    with pytest.raises(ValueError, match="7 is odd"):
        GRU(width=7, bidirectional=True).init(jax.random.key(0), x)


def test_an_lstm_begins_by_remembering(key):
    params = LSTM(width=6).init(key, jnp.zeros((1, 1, 4)))["params"]
    np.testing.assert_array_equal(params["forwards_0_bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 6))


def test_half_precision_is_near_and_leaves_in_single():
    net = LSTM(width=6, depth=2)
    variables, x = case(net)
    h, state = net.clone(dtype="bfloat16").apply(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((h, state))} == {jnp.dtype("float32")}
    near(h, net.apply(variables, x)[0], 0.05)


def test_checkpointing_holds_less():
    """Of 256 steps, the backward pass keeps what some dozens of steps are worth."""
    net = LSTM(width=16)
    variables, x = case(net, steps=256)

    def held(net):
        gradient = jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, x)[0][:, -1] ** 2)))
        return gradient.lower(variables).compile().memory_analysis().temp_size_in_bytes

    assert held(net.clone(remat="sqrt")) < 0.3 * held(net)
    assert held(net.clone(remat="sqrt", window=1000)) < 0.3 * held(net)  # longer than the sequence: it cuts nothing


def test_weights_gradients_are_summed_in_single_precision():
    """Step by step in bfloat16 the sum over 1,000 steps would be off by a tenth."""
    net = RNN(width=16)
    variables, x = case(net, steps=1000)
    gradient = lambda net: jax.jit(jax.grad(lambda v: jnp.mean(net.apply(v, x)[0] ** 2)))(variables)  # noqa: E731
    half = net.clone(dtype="bfloat16")
    expected = gradient(half)  # whose sum is one product
    for remat in ("full", "group(10)", "nested"):
        found = gradient(half.clone(remat=remat))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert float(jnp.linalg.norm(a - b)) < 0.03 * float(jnp.linalg.norm(b))
