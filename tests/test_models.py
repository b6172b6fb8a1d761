"""Networks: shapes at every size, scan equals loop, conditioning, precision, counts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.convolution import Conv3x3, convolution
from models.denoiser import Denoiser
from models.dit import PRESETS, DiT, DiTBlock
from models.embedding import sinusoidal
from models.mlp import MLP, MLPBlock
from models.patches import positions
from models.stack import Stack
from models.unet import UNet
from paths.predictions import face
from paths.schedules import VP, Cosine, Rectified
from tests.conftest import tiers
from tests.exact import PATHS, exact


def perturbed(params):
    """Zero-initialised layers make every test of a network trivially true: move all leaves."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return tree.unflatten([leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)])


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


NETS = {
    "mlp": (MLP(width=16, depth=3, num_classes=4, dropout=0.3), (8, 8, 1)),
    "dit": (DiT(width=16, depth=3, heads=2, patch=4, num_classes=4, dropout=0.3), (8, 8, 1)),
    "unet": (UNet(width=8, multipliers=(1, 2), blocks=3, attention=(8,), num_classes=4, dropout=0.3), (8, 8, 1)),
}


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def applied(net, params, batch, train=False, dropout=None):
    """As one program: op by op a network takes many seconds to compile."""
    return net.apply({"params": params}, *batch, train=train, rngs=None if dropout is None else {"dropout": dropout})


@pytest.fixture(scope="module", params=tiers(list(NETS), first=("mlp", "dit")))
def net_and_batch(request):
    net, shape = NETS[request.param]
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    c, label = jnp.asarray([0.0, 10.0, 500.0, 1000.0]), jnp.asarray([0, 1, 2, 3])
    params = jax.jit(lambda *batch: perturbed(net.init(jax.random.key(0), *batch)["params"]))(x, c, label)
    return net, params, (x, c, label)


def test_output_has_the_inputs_shape_and_starts_at_zero(net_and_batch):
    net, _, batch = net_and_batch
    params = jax.jit(net.init)(jax.random.key(0), *batch)
    out = jax.jit(net.apply)(params, *batch)
    assert out.shape == batch[0].shape
    np.testing.assert_array_equal(out, 0.0)


def test_stack_equals_a_loop_over_its_blocks(key):
    h, c = jax.random.normal(key, (5, 16)), jax.random.normal(key, (5, 8))
    block = MLPBlock(16, 2, 0.0, None, parent=None)
    stack = Stack(block, 4, every=True)
    params = perturbed(jax.jit(stack.init)(key, h, c)["params"])
    last, every = jax.jit(stack.apply)({"params": params}, h, c)
    for i in range(4):
        h = jax.jit(block.apply)({"params": jax.tree.map(lambda leaf: leaf[i], params["blocks"])}, h, c)  # noqa: B023
        np.testing.assert_allclose(every[i], h, atol=1e-5)
    np.testing.assert_allclose(last, h, atol=1e-5)


def test_dropout_differs_between_layers_and_keys(net_and_batch):
    net, params, batch = net_and_batch
    run = lambda k: applied(net, params, batch, train=True, dropout=jax.random.key(k))  # noqa: E731
    assert not np.allclose(run(0), run(1))
    np.testing.assert_array_equal(run(0), run(0))


def test_null_class_and_no_label_are_one_and_classes_differ(net_and_batch):
    net, params, (x, c, label) = net_and_batch
    apply = lambda label: applied(net, params, (x, c, label))  # noqa: E731
    np.testing.assert_array_equal(apply(None), apply(jnp.full(4, -1)))
    assert not np.allclose(apply(label), apply(None))
    assert not np.allclose(apply(label), apply(label[::-1]))


def test_examples_do_not_see_each_other(net_and_batch):
    net, params, (x, c, label) = net_and_batch
    whole = applied(net, params, (x, c, label))
    alone = applied(net, params, (x[2:3], c[2:3], label[2:3]))
    np.testing.assert_allclose(alone[0], whole[2], atol=2e-4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_outside(net_and_batch):
    net, params, batch = net_and_batch
    lowered = jax.jit(net.clone(dtype="bfloat16").apply).lower({"params": params}, *batch).as_text()
    assert "bf16" in lowered
    assert "bf16" not in jax.jit(net.apply).lower({"params": params}, *batch).as_text()
    low = applied(net.clone(dtype="bfloat16"), params, batch)
    assert low.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    full = applied(net, params, batch)
    assert float(jnp.abs(low - full).mean()) < 0.1 * float(jnp.abs(full).mean())


@pytest.mark.parametrize(
    ("size", "resample"),
    tiers(
        itertools.product([(8, 8), (9, 13), (28, 28), (32, 16)], ["conv", "mean"]),
        first=lambda size, resample: (size, resample) in (((9, 13), "conv"), ((8, 8), "mean")),
    ),
)
def test_unet_takes_any_size_from_eight(size, resample):
    net = UNet(width=8, multipliers=(1, 2, 2), blocks=1, attention=(7,), resample=resample, scale_shift=False)
    x = jnp.zeros((1, *size, 3))
    out = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), x, jnp.zeros(1))[0])
    assert out.shape == x.shape


def test_unet_refuses_smaller_images():
    with pytest.raises(ValueError, match="at least 8x8, got 4x4"):
        UNet().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))


def test_unet_attends_only_where_asked():
    x = jnp.zeros((1, 16, 16, 1))
    names = lambda net: [  # noqa: E731
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1)))
    ]
    attends = {name.split("'")[3] for name in names(UNet(width=8, attention=(8,), blocks=1)) if "attention" in name}
    assert attends == {"down1_widen", "middle1", "up1_first", "up1_last"}


def test_cifar10_unet_has_the_papers_parameters():
    """2006.11239 §4: "35.7 million parameters"."""
    from experiments.cifar10_ddpm import experiment

    assert isinstance(experiment.model, Denoiser)
    shapes = jax.eval_shape(experiment.model.net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    assert count(shapes) == 35_746_307


def test_sinusoidal_embedding_is_the_papers():
    c = np.asarray([0.0, 3.0, 999.0])
    out = np.asarray(sinusoidal(jnp.asarray(c), 8))
    for k in range(4):
        np.testing.assert_allclose(out[:, k], np.cos(c * 10 ** (-4 * k / 4)), atol=1e-4)
        np.testing.assert_allclose(out[:, 4 + k], np.sin(c * 10 ** (-4 * k / 4)), atol=1e-4)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity", "score", "edm"])
def test_denoiser_reads_its_network_through_the_face(predicts):
    """raw → denoise by the face's row, and velocity = α̇x̂₀ + σ̇ε̂."""
    model = Denoiser(net=MLP(width=8, depth=1), path=VP(), predicts=predicts, sigma_data=0.6)
    x, t = jax.random.normal(jax.random.key(0), (6, 2)), jnp.linspace(0.1, 0.9, 6)
    variables = jax.jit(model.init)(jax.random.key(1), {"x": x})
    variables = {"params": perturbed(variables["params"]), "state": {}}
    row = face(predicts, VP(), t, 0.6)
    net_out = model.net.apply({"params": variables["params"]}, row.c_in[:, None] * x, row.c_noise)
    x0 = row.c_skip[:, None] * x + row.c_out[:, None] * net_out
    np.testing.assert_allclose(model.denoise(variables, x, t), x0, rtol=1e-4, atol=1e-5)
    if predicts == "velocity":
        np.testing.assert_allclose(model.velocity(variables, x, t), net_out, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("path", [PATHS["vp"], PATHS["ve"], PATHS["rectified"]], ids=["vp", "ve", "rectified"])
def test_velocity_is_the_probability_flow(path):
    """dx/dt = f·x − g²/2·∇log pₜ (2011.13456 eq. 13), with the mixture's score by autodiff of its log-density."""
    from tests.exact import MEANS, STD, WEIGHTS

    def log_density(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 * STD**2 + sigma**2
        away = jnp.sum((x[None] - alpha * jnp.asarray(MEANS, jnp.float32)) ** 2, -1)
        return jax.nn.logsumexp(jnp.log(jnp.asarray(WEIGHTS, jnp.float32)) - 0.5 * away / variance)

    x, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.2, 0.8, 5)
    score = jax.vmap(jax.grad(log_density))(x, t)
    expected = path.drift(t)[:, None] * x - 0.5 * path.diffusion_squared(t)[:, None] * score
    np.testing.assert_allclose(exact(path).velocity({"params": {}, "state": {}}, x, t), expected, rtol=2e-3, atol=2e-3)


def test_latest_time_follows_face_and_path():
    net = MLP()
    assert Denoiser(net=net, path=VP(), predicts="eps").t_max == 1.0
    assert Denoiser(net=net, path=Rectified(), predicts="velocity").t_max == 1.0
    assert Denoiser(net=net, path=Cosine(), predicts="eps").t_max == pytest.approx(0.999, abs=1e-3)


@pytest.mark.parametrize(("preset", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_dit_has_the_papers_parameters(preset, millions):
    """2212.09748 table 1: patches of 2 on 32x32x4 latents, 1,000 classes."""
    net = DiT(**PRESETS[preset], patch=2, num_classes=1000)
    x, t, label = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    assert round(count(jax.eval_shape(net.init, jax.random.key(0), x, t, label)["params"]) / 1e6) == millions


@pytest.mark.thorough
def test_dit_blocks_in_a_scan_equal_a_loop(key):
    h, c = jax.random.normal(key, (3, 4, 16)), jax.random.normal(key, (3, 16))
    block = DiTBlock(16, 2, 4, 0.0, None, parent=None)
    stack = Stack(block, 3)
    params = perturbed(jax.jit(stack.init)(key, h, c)["params"])
    last, _ = jax.jit(stack.apply)({"params": params}, h, c)
    for i in range(3):
        h = jax.jit(block.apply)({"params": jax.tree.map(lambda leaf: leaf[i], params["blocks"])}, h, c)  # noqa: B023
    np.testing.assert_allclose(last, h, atol=1e-5)


def test_dit_puts_patches_back_where_they_were():
    """Each patch says the bias of the last layer: rows of a patch, then columns, then channels."""
    net = DiT(width=16, depth=1, heads=2, patch=2)
    x, t = jnp.zeros((1, 4, 6, 3)), jnp.zeros(1)
    params = jax.jit(net.init)(jax.random.key(0), x, t)["params"]
    params["out"]["bias"] = jnp.arange(12.0)
    out = jax.jit(net.apply)({"params": params}, x, t)
    np.testing.assert_array_equal(out[0], np.tile(np.arange(12.0).reshape(2, 2, 3), (2, 3, 1)))


@pytest.mark.thorough
def test_dit_reads_patches_in_the_order_it_writes_them():
    """With attention shut off, a pixel of the answer depends on its own patch alone."""
    net = DiT(width=16, depth=1, heads=2, patch=2)
    x, t = jax.random.normal(jax.random.key(1), (1, 4, 6, 1)), jnp.zeros(1)
    params = perturbed(jax.jit(net.init)(jax.random.key(0), x, t)["params"])
    own = np.zeros((4, 6), bool)
    own[2:4, 4:6] = True
    moved = lambda p: np.abs(jax.grad(lambda x: net.apply({"params": p}, x, t)[0, 3, 4, 0])(x))[0, :, :, 0]  # noqa: E731
    assert (moved(params) > 0).all()  # attention reaches every patch
    shut = params["blocks"]["blocks"]["attention"]["out"]
    shut["kernel"], shut["bias"] = jnp.zeros_like(shut["kernel"]), jnp.zeros_like(shut["bias"])
    np.testing.assert_array_equal(moved(params) > 0, own)


def test_dit_tells_positions_apart():
    table = positions(3, 5, 16)
    assert table.shape == (15, 16)
    assert len(np.unique(table.round(6), axis=0)) == 15


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (DiT(width=16, depth=1, heads=2, patch=3), (8, 8, 1), "sides 3 divides, not 8x8"),
        (DiT(width=16, depth=1, heads=3, patch=2), (8, 8, 1), "divisible by 4 and by its heads"),
    ],
)
def test_dit_refuses_what_it_cannot_cut(net, shape, message):
    with pytest.raises(ValueError, match=message):
        net.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))


def grads_and_jets(apply):
    """All that a training step, MeanFlow's and a likelihood's ask of a layer: gradients, a JVP, a gradient of it."""

    def both(params, x):
        loss = lambda p, x: jnp.sum(jnp.sin(apply(p, x)))  # noqa: E731
        jet = lambda p, x: jax.jvp(lambda x: apply(p, x), (x,), (jnp.cos(x),))[1]  # noqa: E731
        through = jax.grad(lambda p, x: jnp.sum(jet(p, x) ** 2), argnums=(0, 1))(params, x)
        return jax.grad(loss, argnums=(0, 1))(params, x), jet(params, x), through

    return jax.jit(both)


@pytest.mark.parametrize("size", [(7, 5), (1, 3)])
def test_the_scanned_convolution_is_flaxs_in_value_parameters_and_derivatives(size):
    ours, flax = Conv3x3(6, None), nn.Conv(6, (3, 3))
    x = jax.random.normal(jax.random.key(1), (3, *size, 4))
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(jax.random.key(0), x))
    params = {"params": perturbed(params["params"])}
    np.testing.assert_array_equal(ours.apply(params, x), flax.apply(params, x))
    tree = (grads_and_jets(layer.apply)(params, x) for layer in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), *tree)


def test_the_scanned_convolution_keeps_half_precision_and_sums_in_more():
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 64))
    layer = Conv3x3(16, "bfloat16")
    params = layer.init(jax.random.key(0), x)
    assert layer.apply(params, x).dtype == jnp.bfloat16

    def gradients(layer):
        loss = lambda params, x: jnp.sum(layer.apply(params, x).astype(jnp.float32) ** 2)  # noqa: E731
        params_gradient, x_gradient = jax.grad(loss, argnums=(0, 1))(params, x)
        return params_gradient["params"]["kernel"], x_gradient

    exact = gradients(Conv3x3(16, None))
    ours, flaxs = gradients(layer), gradients(nn.Conv(16, (3, 3), dtype="bfloat16"))
    for mine, theirs, right in zip(ours, flaxs, exact, strict=True):
        assert jnp.linalg.norm(mine - right) < 1.1 * jnp.linalg.norm(theirs - right)


def test_the_scanned_convolution_keeps_one_copy_of_its_input():
    """Nine shifted copies would be kept without the checkpoint in models/convolution.py."""
    x = jnp.zeros((2, 16, 16, 8))
    kernels = jnp.zeros((24, 3, 3, 8, 8))

    def temporary(depth):
        run = lambda ks, x: jnp.sum(jax.lax.scan(lambda h, k: (convolution(h, k), None), x, ks)[0])  # noqa: E731
        compiled = jax.jit(jax.grad(run, argnums=(0, 1))).lower(kernels[:depth], x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert (temporary(24) - temporary(8)) / 16 < 1.5 * (x.nbytes + kernels[0].nbytes)
