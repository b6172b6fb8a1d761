"""The gated PixelCNN: what it sees, and that steps with a cache are the whole pass."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pixel_transformer import tiny
from losses.sequence import NextToken, log_probs
from models.language_model import LanguageModel
from models.pixelcnn import PixelCNN
from models.regressor import SequenceRegressor
from samplers.autoregressive import Decoding
from tests.conftest import tiers

V = 5
NET = PixelCNN(width=6, depth=2, grid=(3, 5))
MODEL = LanguageModel(backbone=NET, vocabulary=V, from_start=True, num_classes=3)


def case(model=MODEL, size=3):
    """(variables, batch); no parameter is zero."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, V, (size, model.backbone.limit)), jnp.int32)
    batch = {"x": x, "label": jnp.arange(size) % 3}
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes), batch


def near(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


whole = jax.jit(lambda model, variables, x, batch: model.apply(variables, x, batch), static_argnums=0)


@pytest.mark.parametrize(
    ("net", "prompts"),
    tiers(
        {
            "rows of 5": (NET, (0, 4, 5)),
            "wider windows": (NET.clone(grid=(4, 3), kernel=5, first_kernel=3), (2, 6)),
            "windows larger than the grid": (NET.clone(grid=(2, 3), kernel=7, first_kernel=9, depth=1), (3,)),
            "one row": (NET.clone(grid=(1, 4), kernel=1), (2,)),
        },
        first=("windows larger than the grid",),
    ),
)
def test_a_prompt_and_steps_are_the_whole(net, prompts):
    model = replace(MODEL, backbone=net)
    variables, batch = case(model)
    x, step = batch["x"], jax.jit(model.step)
    expected = whole(model, variables, x[:, :-1], batch)
    assert float(jnp.std(expected, axis=(0, 1)).min()) > 1e-2  # not the same everywhere
    for given in prompts:
        prefill = jax.jit(model.prefill, static_argnums=2)
        state, logits = prefill(variables, x[:, :given], net.limit - 1, batch)
        found = [logits]
        for t in range(given, net.limit - 1):
            state, logits = step(variables, state, x[:, t])
            found.append(logits)
        near(jnp.stack(found, axis=1), expected[:, given:])


def test_it_is_what_the_equations_say():
    """Place by place, window by window."""
    net = NET.clone(first_kernel=5, grid=(3, 4))
    params = jax.tree.map(np.asarray, case(replace(MODEL, backbone=net))[0]["params"]["backbone"])
    vectors = np.random.default_rng(1).normal(size=(1, 12, 6)).astype(np.float32)
    found = net.apply({"params": params}, jnp.asarray(vectors))[0]
    c, x = vectors[0, 0], {divmod(place, 4): vector for place, vector in enumerate(vectors[0, 1:])}
    gate = lambda y: np.tanh(y[:6]) / (1.0 + np.exp(-y[6:]))  # noqa: E731
    v, h = x, x
    for layer in range(3):
        own = jax.tree.map(lambda leaf: leaf[layer - 1], params["layers"]["blocks"]) if layer else params["first"]  # noqa: B023
        half, least = (1, 0) if layer else (2, 1)
        v_new, h_new = {}, {}
        for i, j in itertools.product(range(3), range(4)):
            window = itertools.product(range(half, least - 1, -1), range(-half, half + 1))
            above = np.concatenate([v.get((i - m, j + n), np.zeros(6)) for m, n in window])
            left = np.concatenate([h.get((i, j - n), np.zeros(6)) for n in range(half, least - 1, -1)])
            told = c @ own["told"]["kernel"] + own["told"]["bias"]
            p = above @ own["above_kernel"] + told[:12]
            q = left @ own["left_kernel"] + p @ own["between"]["kernel"] + told[12:]
            v_new[i, j] = gate(p)
            h_new[i, j] = gate(q) @ own["out"]["kernel"] + own["out"]["bias"] + (h[i, j] if layer else 0.0)
        v, h = v_new, h_new
    y = np.maximum(np.stack(list(h.values())), 0.0) @ params["last"]["kernel"] + params["last"]["bias"]
    near(found[0], np.maximum(y, 0.0), 1e-4)


def test_a_part_of_the_grid_is_the_beginning_of_the_whole():
    variables, batch = case()
    expected = whole(MODEL, variables, batch["x"][:, :-1], batch)
    for length in (3, 5):
        near(whole(MODEL, variables, batch["x"][:, :length], batch), expected[:, : length + 1])


@pytest.mark.parametrize(
    "net",
    [
        PixelCNN(width=6, depth=3, first_kernel=3, grid=(4, 5)),  # sees all there is
        PixelCNN(width=6, depth=1, first_kernel=3, grid=(4, 5)),
        PixelCNN(width=6, depth=1, kernel=1, first_kernel=5, grid=(4, 6)),
    ],
)
def test_all_before_a_place_within_reach_is_seen_and_nothing_else(net):
    """By gradients: a token counts for a place where any output there moves with any of its numbers."""
    model = replace(MODEL, backbone=net)
    params = {"params": case(model)[0]["params"]["backbone"]}
    h = jax.random.normal(jax.random.key(2), (2, net.limit, net.width))
    slopes = jax.jit(jax.jacrev(lambda h: jnp.sum(net.apply(params, h)[0], axis=0)))(h)  # [t, f, b, s, f]
    found = np.asarray(jnp.max(jnp.abs(slopes), axis=(1, 2, 4))) > 0.0
    i, j = (axis.reshape(-1) for axis in np.mgrid[: net.grid[0], : net.grid[1]])
    up, left = i[:, None] - i[None, :], j[:, None] - j[None, :]  # from a place to the token of another
    reach = net.first_kernel // 2 + net.depth * (net.kernel // 2)
    before = (up > 0) | ((up == 0) & (left > 0))
    expected = before & (up <= reach) & (np.abs(left) <= reach)
    assert net.depth < 3 or (expected == before).all()
    np.testing.assert_array_equal(found[:, 1:], expected[:, :-1])  # the last token is never read
    assert found[:, 0].all()  # what stands before all of them is told everywhere


def test_a_class_is_told():
    variables, batch = case()
    tokens = batch["x"][:1].repeat(4, axis=0)[:, :-1]
    logits = whole(MODEL, variables, tokens, {"label": jnp.asarray([0, 1, 2, 0])})
    gaps = jnp.max(jnp.abs(logits[:, None] - logits[None]), axis=3)  # of two classes at each place
    assert float(gaps[0, 1:3].min()) > 1e-3
    assert float(gaps[1, 2].min()) > 1e-3
    near(gaps[0, 3], 0.0)


def test_its_likelihoods_add_up_to_one():
    """Over all first rows; and over all that ends a grid, the rest of it given."""
    model = replace(MODEL, backbone=NET.clone(grid=(3, 3)))
    variables, batch = case(model)
    tails = jnp.asarray(list(itertools.product(range(V), repeat=3)), jnp.int32)
    ended = jnp.concatenate([batch["x"][:1, :-3].repeat(len(tails), axis=0), tails], axis=1)
    for x in (tails, ended):
        batch = {"x": x, "label": jnp.full((len(x),), 1)}
        found = jax.jit(lambda b=batch: log_probs(model, variables, b)[0][:, -3:])()
        near(jnp.sum(jnp.exp(jnp.sum(found, axis=1))), 1.0)
        assert float(jnp.exp(jnp.sum(found, axis=1)).max()) > 1.5 / V**3  # and they are not all alike


@pytest.mark.parametrize("given", [0, 7])
def test_samples_are_those_of_reading_the_whole_grid_for_each_token(given):
    variables, batch = case()
    keys = jax.random.split(jax.random.key(5), 3)
    condition = batch | {"prompt": batch["x"][:, :given]}
    found = jax.jit(lambda v: Decoding()(MODEL, v, keys, condition, (15,)).x)(variables)
    x = batch["x"].at[:, given:].set(0)
    for place in range(given, 15):
        logits = whole(MODEL, variables, x[:, :-1], batch)
        x = x.at[:, place].set(Decoding().choose(logits[:, place], keys, place))
    np.testing.assert_array_equal(found, x)
    assert len(np.unique(x[:, given:])) > 2


def test_a_step_costs_the_same_on_a_higher_grid():
    variables, _ = case()
    texts = []
    for height in (3, 300):
        model = replace(MODEL, backbone=NET.clone(grid=(height, 5)))
        state = model.backbone.empty(3, height * 5)
        texts.append(jax.jit(model.step).lower(variables, state, jnp.zeros(3, jnp.int32)).as_text())
    assert texts[0] == texts[1]


@pytest.mark.thorough
def test_a_training_step_reaches_every_parameter(key):
    """With checkpointing as without it."""
    _, batch = case()
    variables = jax.jit(MODEL.init)(key, batch)

    def gradients(remat):
        model = replace(MODEL, backbone=NET.clone(remat=remat, dropout=0.2))
        loss = lambda params: jnp.mean(  # noqa: E731
            NextToken()(model, {**variables, "params": params}, key, batch, jnp.asarray(0)).value
        )
        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    value, found = gradients(None)
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        layers = leaf if "blocks" in str(path) else leaf[None]
        assert jnp.isfinite(layers).all()
        assert float(jnp.abs(layers).reshape(len(layers), -1).max(axis=1).min()) > 1e-6, path
    for remat in ("full", "dots"):
        jax.tree.map(near, gradients(remat), (value, found))


@pytest.mark.thorough
def test_dropout_is_of_training_alone(key):
    model = replace(MODEL, backbone=NET.clone(dropout=0.5))
    variables, batch = case(model)
    read = jax.jit(lambda key: model.read(variables, batch, key).h)
    plain, drawn, again = model.read(variables, batch).h, read(key), read(jax.random.key(1))
    near(plain, MODEL.read(variables, batch).h)
    assert float(jnp.abs(drawn - plain).max()) > 1e-2
    assert float(jnp.abs(drawn - again).max()) > 1e-2


def test_it_is_as_exact_as_its_input():
    with jax.enable_x64(True):
        params = {"params": case()[0]["params"]["backbone"]}
        h = jax.random.normal(jax.random.key(2), (2, NET.limit, NET.width), jnp.float64)
        expected = jax.jit(NET.apply)(params, h)[0]
        found, _ = jax.jit(NET.apply)(params, h, NET.empty(2, NET.limit))
    assert found.dtype == expected.dtype == jnp.float64
    near(found, expected, 1e-12)


def test_products_are_in_the_compute_dtype():
    net = NET.clone(dtype="bfloat16")
    params = {"params": case()[0]["params"]["backbone"]}
    h = jax.random.normal(jax.random.key(2), (2, NET.limit, NET.width))
    exact, expected = (jax.jit(n.apply)(params, h)[0] for n in (NET, net))
    found, _ = jax.jit(net.apply)(params, h, net.empty(2, NET.limit))
    gap = float(jnp.abs(expected - exact).max())
    assert found.dtype == expected.dtype == jnp.float32
    assert 1e-3 < gap < 0.2
    near(found, expected, 2 * gap)


def test_the_grid_is_the_datas():
    model = LanguageModel(backbone=PixelCNN(width=6, depth=1), from_start=True, num_classes=10)
    assert replace(tiny, model=model).resolved_model().backbone.grid == (8, 8)


H = jnp.zeros((2, 15, 6))


def drawn(length):
    variables, batch = case()
    keys = jax.random.split(jax.random.key(0), 3)
    return jax.eval_shape(lambda v: Decoding(length=length)(MODEL, v, keys, batch | {"prompt": None}, (15,)), variables)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: LanguageModel(backbone=NET), "a PixelCNN begins with the start token: it needs from_start"),
        (lambda: NET.clone(grid=None).init(jax.random.key(0), H), "needs a grid.*--model.backbone.grid"),
        (lambda: NET.clone(grid=(2, 7)).init(jax.random.key(0), H), r"15 tokens is longer than a grid of \(2, 7\)"),
        (lambda: NET.empty(2, 16), "16 tokens is longer"),
        (lambda: NET.clone(kernel=2).init(jax.random.key(0), H), "kernel=2 and first_kernel=7 must be odd"),
        (lambda: NET.clone(first_kernel=4).init(jax.random.key(0), H), "first_kernel=4 must be odd"),
        (lambda: NET.clone(first_kernel=1).init(jax.random.key(0), H), "the second at least 3"),
        (lambda: NET.init(jax.random.key(0), H, lengths=jnp.asarray([15, 3])), "no padding"),
        (lambda: SequenceRegressor(backbone=NET), "takes x_1 for what stands before"),
        (lambda: drawn(16), "a sample has 15 tokens, the whole of a grid: length=16"),
    ],
)
def test_what_fits_no_grid_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()
