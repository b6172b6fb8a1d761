"""Operations counted in a jaxpr: hand counts of products and convolutions, loops, branches, derivatives, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from losses.linear_cross_entropy import linear_cross_entropy
from training.flops import matmul_flops

SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)
ONE = 2 * 16**3  # a product of two such


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
    ("f", "shapes", "expected"),
    [
        (jnp.matmul, ((3, 5), (5, 7)), 2 * 3 * 5 * 7),
        (jnp.matmul, ((4, 3, 5), (4, 5, 7)), 4 * 2 * 3 * 5 * 7),
        (lambda a, b: jnp.einsum("bthd,bshd->bhts", a, b), ((2, 6, 3, 4), (2, 5, 3, 4)), 2 * 2 * 3 * 6 * 5 * 4),
        (jnp.outer, ((3,), (5,)), 0),  # a broadcast product, and no sum
        (jnp.dot, ((5,), (5,)), 2 * 5),
        (lambda a, b: jnp.sum(jnp.tanh(a) + b), ((3, 5), (3, 5)), 0),
    ],
)
def test_products_are_the_hands_count(f, shapes, expected):
    assert matmul_flops(f, *(shape(*sizes) for sizes in shapes)) == expected


def convolve(x, w, **settings):
    return lax.conv_general_dilated(x, w, **{"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **settings})


@pytest.mark.parametrize(
    ("settings", "kernel", "expected"),
    [
        ({"window_strides": (1, 1), "padding": "VALID"}, (3, 3, 4, 6), 2 * (2 * 6 * 6 * 6) * (3 * 3 * 4)),
        # 8 places, 3 taps, of which 2 miss: 22 pairs an axis.
        ({"window_strides": (1, 1), "padding": "SAME"}, (3, 3, 4, 6), 2 * (2 * 6) * (22 * 22) * 4),
        ({"window_strides": (2, 2), "padding": "VALID"}, (2, 2, 4, 6), 2 * (2 * 4 * 4 * 6) * (2 * 2 * 4)),
        (
            {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 4},
            (3, 3, 1, 4),
            2 * (2 * 6 * 6 * 4) * (3 * 3),
        ),
        (
            {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 2)},
            (3, 3, 4, 6),
            2 * (2 * 4 * 4 * 6) * (3 * 3 * 4),
        ),
        # Of two groups of the batch: each channel that comes out sees one.
        (
            {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2},
            (3, 3, 4, 6),
            2 * (1 * 6 * 6 * 6) * (3 * 3 * 4),
        ),
    ],
    ids=["valid", "same", "strided", "depthwise", "dilated", "batch groups"],
)
def test_convolutions_are_the_hands_count_and_their_gradients_cost_the_same_again(settings, kernel, expected):
    """The input's gradient and the kernel's are the same pairs: with dilations, padding and groups of the batch."""
    x, w = shape(2, 8, 8, 4), shape(*kernel)
    assert matmul_flops(lambda x, w: convolve(x, w, **settings), x, w) == expected
    loss = lambda x, w: jnp.sum(jnp.tanh(convolve(x, w, **settings)))  # noqa: E731
    assert matmul_flops(jax.grad(loss, argnums=0), x, w) == 2 * expected
    assert matmul_flops(jax.grad(loss, argnums=(0, 1)), x, w) == 3 * expected


def test_a_convolution_and_its_gradients_are_what_xla_counts():
    f = lambda x, w: jnp.sum(jnp.tanh(convolve(x, w, window_strides=(2, 2), padding="SAME")))  # noqa: E731
    x, w = shape(2, 8, 8, 4), shape(3, 3, 4, 6)
    for g in (f, jax.grad(f, argnums=0), jax.grad(f, argnums=1)):
        cost = jax.jit(g).lower(x, w).compile().cost_analysis()
        assert cost is not None
        assert cost["flops"] == pytest.approx(matmul_flops(g, x, w), rel=0.05)  # the sum, and tanh's derivative


def test_ragged_products_are_of_every_row_once():
    groups = jnp.asarray([2, 4])
    f = lambda a, b: jnp.sum(lax.ragged_dot(a, b, groups))  # noqa: E731
    assert matmul_flops(f, shape(6, 4), shape(2, 4, 3)) == 2 * 6 * 4 * 3
    assert matmul_flops(jax.grad(f, argnums=(0, 1)), shape(6, 4), shape(2, 4, 3)) == 3 * 2 * 6 * 4 * 3


def scanned(x, ws):
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def test_a_scans_body_counts_as_often_as_it_runs_where_xlas_own_count_is_once():
    x, ws = SQUARE, shape(8, 16, 16)
    assert matmul_flops(scanned, x, ws) == 8 * ONE
    cost = jax.jit(scanned).lower(x, ws).compile().cost_analysis()
    assert cost is not None
    assert ONE <= cost["flops"] < 1.2 * ONE
    cost = jax.jit(jnp.matmul).lower(x, x).compile().cost_analysis()
    assert cost is not None
    assert cost["flops"] == pytest.approx(ONE, rel=0.01)


def test_the_gradient_of_a_scanned_network_is_three_times_the_forward_pass():
    x, ws = SQUARE, shape(8, 16, 16)
    loss = lambda x, ws: jnp.sum(scanned(x, ws))  # noqa: E731
    assert matmul_flops(jax.grad(loss, argnums=1), x, ws) == 3 * 8 * ONE
    alone = lambda ws: loss(jnp.ones((16, 16)), ws)  # noqa: E731
    first = lambda x, w, ws: loss(jnp.tanh(x @ w), ws)  # noqa: E731
    assert matmul_flops(jax.grad(alone), ws) == 3 * 8 * ONE
    # A layer of its own before them needs no gradient of its input.
    assert matmul_flops(jax.grad(first, argnums=(1, 2)), x, x, ws) == (3 * 9 - 1) * ONE


def test_a_checkpointed_scan_is_one_forward_pass_more():
    x, ws = SQUARE, shape(8, 16, 16)

    def loss(ws, x):
        body = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None), prevent_cse=False)
        return jnp.sum(lax.scan(body, x, ws)[0])

    assert matmul_flops(jax.grad(loss), ws, x) == 4 * 8 * ONE


@pytest.mark.parametrize(
    ("f", "times"),
    [
        (lambda x: lax.fori_loop(0, 8, lambda i, h: h @ x, x), 8),
        (lambda x: lax.fori_loop(jnp.int32(2), jnp.int32(8), lambda i, h: h @ x, x), 6),  # a while, its end carried
        (lambda x: lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] + 2, c[1] @ x), (0, x))[1], 4),
        (lambda x: lax.while_loop(lambda c: jnp.greater_equal(7, c[0]), lambda c: (2 + c[0], c[1] @ x), (1, x))[1], 4),
        (lambda x: lax.while_loop(lambda c: c[0] > 0, lambda c: (c[0] - 1, c[1] @ x), (5, x))[1], 5),
        (lambda x: lax.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, c[1] @ x), (0, x))[1], 0),
        (lambda x: lax.while_loop(lambda h: h[0, 0] < 7.0, lambda h: h @ x, x), 1),  # as the data say: unknown
        (lambda x: lax.while_loop(lambda c: c[0] < 8, lambda c: (c[0] - 1, c[1] @ x), (0, x))[1], 1),  # unending
        (lambda x: lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x), 2),
        (lambda x: lax.switch(2, [lambda x: x @ x, lambda x: x, lambda x: x @ x @ x], x), 2),
        (jax.jit(lambda x: jax.vmap(lambda row: row @ x)(x)), 1),
        (lambda x: lax.scan(lambda h, _: (lax.fori_loop(0, 3, lambda i, g: g @ x, h), None), x, None, 4)[0], 12),
    ],
)
def test_loops_and_branches(f, times):
    assert matmul_flops(f, SQUARE) == times * ONE


def test_a_jaxpr_counts_as_its_function_and_custom_derivatives_are_entered():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    def backward(kept, g):
        return g @ kept[1].T, kept[0].T @ g

    product.defvjp(lambda a, b: (a @ b, (a, b)), backward)
    loss = lambda a, b: jnp.sum(product(a, b) ** 2)  # noqa: E731
    assert matmul_flops(jax.make_jaxpr(loss)(SQUARE, SQUARE)) == ONE
    assert matmul_flops(jax.grad(loss, argnums=(0, 1)), SQUARE, SQUARE) == 3 * ONE

    @jax.custom_jvp
    def doubled(a):
        return a @ a

    doubled.defjvp(lambda primals, tangents: (doubled(*primals), primals[0] @ tangents[0] + tangents[0] @ primals[0]))
    assert matmul_flops(doubled, SQUARE) == ONE
    assert matmul_flops(lambda a, t: jax.jvp(doubled, (a,), (t,)), SQUARE, SQUARE) == 3 * ONE


@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_split_over_devices_is_counted_on_all_of_them(devices):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rows, whole = PartitionSpec("data"), PartitionSpec()
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert matmul_flops(split, SQUARE, SQUARE) == ONE


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8), (1, 4, 2)])
@pytest.mark.parametrize("axis", ["model", "data", "fsdp"])
def test_a_head_split_over_a_mesh_is_every_example_times_every_class_once(axis, sizes):
    """Forward, the logits once more, and the products of x's gradient and W's; whatever devices repeat of it."""
    x, w, label = shape(16, 4), shape(64, 4), jax.ShapeDtypeStruct((16,), jnp.int32)
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)

    def loss(x, w, label):
        return jnp.sum(linear_cross_entropy(x, w, label, class_axis=axis).value)

    with jax.set_mesh(mesh):
        assert matmul_flops(jax.grad(loss, (0, 1)), x, w, label) == 4 * 2 * 16 * 64 * 4


def test_cudnns_attention_counts_as_the_one_that_is_written_out(monkeypatch):
    """Traced for a GPU that need not be there; forward, and the four products of its gradients."""
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{module}.check_compute_capability", lambda *_: True)
    q, k = (jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16) for length in (8, 16))

    def counts(implementation):
        attend = lambda q, k: jnp.sum(  # noqa: E731
            jax.nn.dot_product_attention(q, k, k, implementation=implementation).astype(jnp.float32)
        )
        return matmul_flops(attend, q, k), matmul_flops(jax.grad(attend, argnums=(0, 1)), q, k)

    assert counts("cudnn") == counts("xla") == tuple(n * 2 * (2 * 4 * 8 * 16 * 64) for n in (2, 6))


def test_the_count_is_of_shapes_alone():
    values = np.random.default_rng(0).normal(size=(16, 16))
    assert matmul_flops(jnp.matmul, values, values) == matmul_flops(jnp.matmul, SQUARE, SQUARE) == ONE
