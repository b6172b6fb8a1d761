"""Attention and the transformer: PyTorch's numbers, masks, positions, the cache, the paper's sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.attention import Attention, CrossAttention, attend, rotary
from models.backbone import within
from models.encoder_decoder import EncoderDecoder
from models.transformer import PAPER, PRESETS, Block, Transformer, sinusoids
from tests.conftest import tiers
from tests.flows import perturbed
from tests.torch_arrays import dense, norm, torch_case


def near(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def fused(weights, prefix=""):
    """PyTorch's self-attention in our layout."""
    return {
        "qkv": {"kernel": weights[f"{prefix}in_proj_weight"].T, "bias": weights[f"{prefix}in_proj_bias"]},
        "out": dense(weights, f"{prefix}out_proj."),
    }


def crossed(weights, prefix=""):
    matrix, bias = weights[f"{prefix}in_proj_weight"].T, weights[f"{prefix}in_proj_bias"]
    width = matrix.shape[0]
    return {
        "q": {"kernel": matrix[:, :width], "bias": bias[:width]},
        "kv": {"kernel": matrix[:, width:], "bias": bias[width:]},
        "out": dense(weights, f"{prefix}out_proj."),
    }


def layer(weights):
    feed_forward = {"up": dense(weights, "linear1."), "down": dense(weights, "linear2.")}
    names = ("before_attention", "before_cross", "before_feed_forward")
    norms = {name: norm(weights, f"norm{i}.") for i, name in enumerate(names, 1)}
    attentions = {"attention": fused(weights, "self_attn."), "cross_attention": crossed(weights, "multihead_attn.")}
    return norms | attentions | {"feed_forward": feed_forward}


def attention(params, x):
    return Attention(8, 2, causal=True).apply({"params": params}, x)


def cross_attention(params, x, memory):
    net = CrossAttention(8, 2)
    k, v = net.apply({"params": params}, memory, method="read")
    return net.apply({"params": params}, x, k, v)


def test_where_a_query_looks_is_what_its_answer_is_made_of_and_nothing_where_all_is_hidden(key):
    net = CrossAttention(4, 1)
    x, memory = jax.random.normal(key, (2, 3, 4)), jax.random.normal(jax.random.key(1), (2, 5, 4))
    params = perturbed(net.init(key, memory, method="read"), key)
    params = {"params": {**params["params"], **perturbed(net.init(key, x, *jnp.ones((2, 2, 5, 1, 4))), key)["params"]}}
    k, v = net.apply(params, memory, method="read")
    mask = jnp.asarray([[[True] * 5] * 2 + [[False] * 5], [[True, False] * 2 + [True]] * 3])
    weights = net.apply(params, x, k, mask, method="weights")
    np.testing.assert_allclose(weights.sum(axis=-1), [[[1.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]], rtol=1e-6)
    out = params["params"]["out"]
    answer = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape) @ out["kernel"] + out["bias"][None, None]
    np.testing.assert_allclose(net.apply(params, x, k, v, mask), answer, atol=1e-5)


def decoder_layer(order):
    block = Block(8, 2, 16, activation="relu", order=order, causal=True, cross=True)
    return lambda params, x, memory: block.apply({"params": params}, x, None, memory)


@pytest.mark.parametrize(
    ("name", "convert", "run"),
    [
        ("attention", fused, attention),
        ("cross_attention", crossed, cross_attention),
        ("layer_post", layer, decoder_layer("post")),
        ("layer_pre", layer, decoder_layer("pre")),
    ],
)
def test_outputs_and_gradients_are_pytorchs(name, convert, run):
    torch = jax.tree.map(jnp.asarray, torch_case(name))
    params, inputs = convert(torch["weight"]), torch["input"]
    loss = lambda params, inputs: (lambda y: (jnp.sum(y**2), y))(run(params, **inputs))  # noqa: E731
    (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, inputs)
    near(output, torch["output"])
    near(gradients[0], convert(torch["weight_gradient"]), 2e-5 if name.startswith("layer") else 1e-5)
    near(gradients[1], torch["input_gradient"], 2e-5 if name.startswith("layer") else 1e-5)


def test_a_row_that_may_look_at_nothing_answers_zero(key):
    q = jax.random.normal(key, (2, 3, 2, 4))
    mask = jnp.ones((2, 3, 3), bool).at[1, 2].set(False)
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(attend(q, q, q, mask) ** 2))(q)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.any(attend(q, q, q, mask)[1, 2])
    near(attend(q, q, q, mask)[0], attend(q, q, q)[0])


def test_rotated_scores_know_the_distance_alone(key):
    q, k = jax.random.normal(key, (2, 1, 6, 2, 8))
    scores = lambda first: jnp.einsum("bthd,bshd->bhts", rotary(q, first), rotary(k, first))  # noqa: E731
    near(scores(0), scores(50), 1e-4)
    near(jnp.linalg.norm(rotary(q, 7), axis=-1), jnp.linalg.norm(q, axis=-1))
    near(rotary(q)[:, 0], q[:, 0])
    # Eq. (3) by hand: the fastest pair turns by one radian a place.
    near(rotary(q)[0, 1, 0, 0], q[0, 1, 0, 0] * np.cos(1.0) - q[0, 1, 0, 4] * np.sin(1.0))


def test_sinusoids_are_the_papers():
    table = sinusoids(jnp.arange(50), 8)
    near(table[:, 1], np.sin(np.arange(50) / 1e4 ** (2 / 8)))
    near(table[:, 7], np.cos(np.arange(50) / 1e4 ** (6 / 8)))


NETS = {
    "gpt2": Transformer(width=8, heads=2, depth=2, context=9, positions="learned", bias=False),
    "paper": Transformer(width=8, heads=2, depth=2, **PAPER),
    "modern": Transformer(width=8, heads=2, depth=2, norm="rms", activation="swiglu", bias=False),
    "deep": Transformer(width=8, heads=2, depth=9, activation="relu_squared"),
}


def drawn(net, x, **more):
    """Variables of which nothing is at its start."""
    variables = jax.jit(net.init)(jax.random.key(0), x, **more)
    return perturbed(variables, jax.random.key(1))


@pytest.mark.parametrize("net", tiers(NETS, first=("modern",)))
def test_nothing_later_is_seen_and_pieces_are_the_whole(net, key):
    x = jax.random.normal(key, (2, 9, 8))
    variables = drawn(net, x)
    run = jax.jit(net.apply)
    whole, none = run(variables, x)
    assert none is None
    near(run(variables, x.at[:, 6:].set(7.0))[0][:, :6], whole[:, :6])
    assert float(jnp.abs(run(variables, x.at[:, 5].set(7.0))[0][:, 5:] - whole[:, 5:]).min(axis=(0, 2)).max()) > 1e-4
    state, found = net.empty(2, 9), []
    for first, last in ((0, 4), (4, 5), (5, 9)):  # a prompt, a step, several at once
        h, state = run(variables, x[:, first:last], state)
        found.append(h)
    near(jnp.concatenate(found, axis=1), whole)


def test_an_encoder_sees_all_of_its_own_and_no_padding(key):
    net = Transformer(width=8, heads=2, depth=2, bidirectional=True)
    x = jax.random.normal(key, (3, 7, 8))
    variables, lengths = drawn(net, x), jnp.asarray([7, 4, 0])
    run = jax.jit(lambda x, lengths: net.apply(variables, x, None, lengths)[0])
    h = run(x, lengths)
    assert np.isfinite(h).all()
    near(h[1, :4], net.apply(variables, x[1:2, :4])[0][0])
    near(run(x.at[1, 4:].set(9.0), lengths)[1, :4], h[1, :4], 1e-6)
    assert float(jnp.abs(run(x.at[0, 6, 0].add(1.0), lengths)[0, 0] - h[0, 0]).max()) > 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("order", tiers(["pre", "post"], first=("post",)))
def test_where_a_decoder_looks_is_what_it_reads(order, key):
    """The walk from layer to layer that the picture is drawn from is the decoder; its weights make what is read."""
    net = Transformer(width=8, heads=2, depth=2, order=order, positions="sinusoidal", cross=True)
    h, memory = jax.random.normal(key, (2, 5, 8)), jax.random.normal(jax.random.key(1), (2, 4, 8))
    variables = drawn(net, h, memory=memory)
    mask = within(jnp.asarray([4, 2]), 4)[:, None, :]
    whole, _ = net.apply(variables, h, None, None, False, memory, jnp.asarray([4, 2]))
    found = net.apply(variables, h, memory, mask, method="looks")
    x, block = h + sinusoids(jnp.arange(5), 8)[None], net._block()
    for layer in range(2):
        params = jax.tree.map(lambda leaf: leaf[layer], variables["params"]["layers"]["blocks"])  # noqa: B023
        x, weights = block.apply({"params": params}, x, memory, mask, method="looks")
        near(weights, found[layer])
    if order == "pre":
        x = nn.LayerNorm(epsilon=1e-5).apply({"params": variables["params"]["last"]}, x)
    near(x, whole)
    assert not np.any(found[:, 1, :, :, 2:])
    net = CrossAttention(8, 2)
    params = perturbed(net.init(key, h, *jnp.zeros((2, 2, 4, 2, 4))), key)
    params = {"params": {**params["params"], **perturbed(net.init(key, memory, method="read"), key)["params"]}}
    k, v = net.apply(params, memory, method="read")
    read = jnp.einsum("bhts,bshd->bthd", net.apply(params, h, k, mask, method="weights"), v).reshape(2, 5, 8)
    near(nn.Dense(8).apply({"params": params["params"]["out"]}, read), net.apply(params, h, k, v, mask))


def test_a_cache_in_half_precision_is_the_whole(key):
    net = Transformer(width=8, heads=2, depth=2, dtype="bfloat16")
    x = jax.random.normal(key, (2, 6, 8))
    variables, state = drawn(net, x), net.empty(2, 6)
    assert state["keys"].dtype == jnp.bfloat16
    whole, _ = net.apply(variables, x)
    first, state = net.apply(variables, x[:, :4], state)
    second, state = net.apply(variables, x[:, 4:], state)
    assert whole.dtype == second.dtype == jnp.float32
    near(jnp.concatenate([first, second], axis=1), whole, 0.1)


@pytest.mark.parametrize(("name", "millions"), [("base", 65), ("big", 213)])
def test_the_papers_parameters(name, millions):
    """Table 3. With 37,000 tokens in one table base comes to 63.1 M, of which the paper says 65, and big to 214.2 M."""
    sizes = {**PAPER, **PRESETS[name]}
    model = EncoderDecoder(
        encoder=Transformer(bidirectional=True, **sizes), decoder=Transformer(cross=True, **sizes), vocabulary=37_000
    )
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"source": tokens, "x": tokens})["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == {"base": 63_083_008, "big": 214_246_400}[name]
    assert abs(count / 1e6 - millions) < 0.031 * millions


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Transformer(width=8, heads=3), "heads=3 must divide a transformer's width=8"),
        (Transformer(width=6, heads=2), "rotary positions are of pairs of numbers, and 3 is odd"),
        (Transformer(width=8, heads=2, positions="learned"), "say how long with context"),
        (
            Transformer(width=8, heads=2, context=4),
            "a sequence of 5 tokens is longer than the transformer's context of 4",
        ),
        (Transformer(width=4, heads=2), "takes vectors as wide, not 8"),
    ],
)
def test_mistakes(net, message):
    with pytest.raises(ValueError, match=message):
        net.init(jax.random.key(0), jnp.zeros((1, 5, 8)))
