"""Embedding networks: the papers' equations in float64, sizes, statistics of scanned blocks, devices, precision."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ModifyScopeVariableError
from jax.sharding import NamedSharding, PartitionSpec

from models.convolution import Conv3x3
from models.deepid import DeepID
from models.embedder import Embedder
from models.embedding_mlp import EmbeddingMLP
from models.resnet import IResNet
from models.sphereface import SphereFace
from models.stack import Stack
from models.vit import ViT
from tests.conftest import tiers
from tests.test_models import count, perturbed
from training.mesh import Mesh

NETS = {
    "sphereface": SphereFace(depth=10, width=4, features=8),
    "iresnet": IResNet(depth=34, width=4, features=8, dropout=0.3),
    "deepid": DeepID(width=0.2, features=8),
    "vit": ViT(width=16, depth=2, heads=2, features=8),
    "mlp": EmbeddingMLP(width=16, depth=3, features=8, dropout=0.3),
}
UNDROPPED = NETS["iresnet"].clone(dropout=0.0)
X = jax.random.normal(jax.random.key(1), (8, 17, 13, 2))


def moved(variables):
    """Parameters and statistics away from where they start; variances stay positive."""
    found = {name: perturbed(tree) for name, tree in variables.items()}
    return found | {"batch_stats": jax.tree.map(jnp.exp, found["batch_stats"])} if "batch_stats" in found else found


@functools.cache
def made(net):
    return moved(jax.jit(net.init)(jax.random.key(0), X))


@functools.partial(jax.jit, static_argnums=0)
def embedded(net, variables, x):
    return net.apply(variables, x)


@functools.partial(jax.jit, static_argnums=0)
def trained(net, variables, x, key=2):
    return net.apply(variables, x, train=True, rngs={"dropout": jax.random.key(key)}, mutable=["batch_stats"])


@pytest.fixture(params=tiers(list(NETS), first=lambda name: name != "iresnet"))
def net_and_variables(request):
    net = NETS[request.param]
    return net, made(net)


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# The equations, written out in float64.


def convolved(x, kernel, stride=1):
    """Windows around every `stride`-th place, those of an even side with one place more behind it; zeros outside."""
    side = kernel.shape[0]
    around = ((side - 1) // 2, side // 2)
    padded = np.pad(x, ((0, 0), around, around, (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        for i in range(side)
        for j in range(side)
    )


def prelu(x, layer):
    return np.maximum(x, 0) + layer["slope"] * np.minimum(x, 0)


def normed(y, layer, train):
    """In training, by the batch's own statistics, from which the running ones must follow."""
    if not train:
        mean, variance = layer["mean"], layer["var"]
    else:
        mean, variance = (moment(y, axis=tuple(range(y.ndim - 1))) for moment in (np.mean, np.var))
        for name, value in (("mean", mean), ("var", variance)):
            np.testing.assert_allclose(layer[f"{name}_after"], 0.9 * layer[name] + 0.1 * value, rtol=1e-3, atol=1e-3)
    return layer.get("scale", 1.0) * (y - mean) / np.sqrt(variance + 1e-5) + layer["bias"]


def unit_of(blocks, i):
    return jax.tree.map(lambda leaf: leaf[i], blocks["blocks"])


def sphereface64(p, x, train):
    h = x
    for k in range(4):
        h = prelu(convolved(h, p[f"down{k}"]["kernel"], 2) + p[f"down{k}"]["bias"], p[f"prelu{k}"])
        for i in range((0, 1, 2, 0)[k]):
            u, y = unit_of(p[f"units{k}"], i), h
            for name in "12":
                y = prelu(convolved(y, u[f"conv{name}"]["kernel"]), u[f"prelu{name}"])
            h = h + y
    return h.reshape(len(h), -1) @ p["out"]["kernel"] + p["out"]["bias"]


def iresnet64(p, x, train):
    norm = functools.partial(normed, train=train)

    def residual(u, h, stride):
        y = norm(convolved(norm(h, u["norm1"]), u["conv1"]["kernel"]), u["norm2"])
        return norm(convolved(prelu(y, u["prelu"]), u["conv2"]["kernel"], stride), u["norm3"])

    h = prelu(norm(convolved(x, p["in"]["kernel"]), p["norm_in"]), p["prelu"])
    for k in range(4):
        u = p[f"first{k}"]
        shortcut = norm(convolved(h, u["shortcut"]["kernel"], 2), u["norm_shortcut"])
        h = shortcut + residual(u, h, 2)
        for i in range((3, 4, 6, 3)[k] - 1):
            h = h + residual(unit_of(p[f"units{k}"], i), h, 1)
    h = norm(h, p["norm_last"]).reshape(len(h), -1)
    return norm(h @ p["out"]["kernel"] + p["out"]["bias"], p["norm_out"])


def deepid64(p, x, train):
    def pooled(h):
        padded = np.pad(h, ((0, 0), (0, h.shape[1] % 2), (0, h.shape[2] % 2), (0, 0)), constant_values=-np.inf)
        return np.max([padded[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)

    def relu_conv(h, layer):
        return np.maximum(convolved(h, layer["kernel"]) + layer["bias"], 0)

    h = x
    for i in (1, 2, 3):
        h = pooled(relu_conv(h, p[f"conv{i}"]))
    third = h.reshape(len(h), -1)
    fourth = relu_conv(h, p["conv4"]).reshape(len(h), -1)
    coarse, fine = np.split(p["out"]["kernel"], [third.shape[1]])
    return np.maximum(third @ coarse + fourth @ fine + p["out"]["bias"], 0)


def merged(*trees):
    """Nested dicts as one, in float64."""
    names = dict.fromkeys(name for tree in trees for name in tree)
    parts = {name: [tree[name] for tree in trees if name in tree] for name in names}
    return {k: merged(*v) if isinstance(v[0], dict) else np.asarray(v[0], np.float64) for k, v in parts.items()}


def suffixed(tree):
    if not isinstance(tree, dict):
        return tree
    return {f"{k}_after" if k in ("mean", "var") else k: suffixed(v) for k, v in tree.items()}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("net", "written_out"),
    tiers(
        {
            "sphereface": (NETS["sphereface"], sphereface64),
            "iresnet": (UNDROPPED, iresnet64),
            "deepid": (NETS["deepid"], deepid64),
        },
        first=("deepid",),
    ),
)
def test_a_network_is_its_equations_in_float64(net, written_out, train):
    variables = made(net)
    out, after = trained(net, variables, X) if train else (embedded(net, variables, X), {})
    known = merged(variables["params"], variables.get("batch_stats", {}), suffixed(after.get("batch_stats", {})))
    expected = written_out(known, np.asarray(X, np.float64), train)
    np.testing.assert_allclose(out, expected, atol=2e-3 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-2


# Sizes.


@pytest.mark.parametrize("size", [(28, 28, 1), (29, 31, 3), (112, 96, 3), (5, 3, 1)])
def test_images_of_any_size_fit(size):
    x = jax.ShapeDtypeStruct((2, *size), jnp.float32)
    for net in NETS.values():
        out, _ = jax.eval_shape(lambda x, net=net: net.init_with_output(jax.random.key(0), x), x)
        assert (out.shape, out.dtype) == ((2, 8), jnp.float32)


@pytest.mark.parametrize("name", ["sphereface", "iresnet", "deepid", "vit"])
def test_networks_of_images_refuse_vectors(name):
    with pytest.raises(ValueError, match=r"takes images \[B, H, W, C\], not arrays with 1 axes an example"):
        NETS[name].init(jax.random.key(0), jnp.zeros((2, 9)))


def params_of(net, size):
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size), jnp.float32))["params"]


@pytest.mark.parametrize(
    ("depth", "units"),
    [(4, (0, 0, 0, 0)), (10, (0, 1, 2, 0)), (20, (1, 2, 4, 1)), (36, (2, 4, 8, 2)), (64, (3, 8, 16, 3))],
)
def test_sphereface_has_the_parameters_of_its_table(depth, units):
    """1704.08063 table 2; a slope a channel, biases where the stride is 2, 7x6 places of 512 channels at the end."""
    channels = (3, 64, 128, 256, 512)
    down = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(channels))
    residual = sum(2 * n * (9 * c * c + c) for n, c in zip(units, channels[1:], strict=True))
    assert count(params_of(SphereFace(depth=depth), (112, 96, 3))) == down + residual + (7 * 6 * 512 + 1) * 512


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 24_025_600), (34, 34_139_328), (50, 43_590_848), (100, 65_156_160)]
)
def test_iresnet_has_the_published_parameters(depth, published):
    """Those of the authors' code at 112x112x3; they count the last normalisation's 512 scales, which stay 1."""
    assert count(params_of(IResNet(depth=depth), (112, 112, 3))) == published - 512


def convolutions(net):
    found = leaves(params_of(net, (112, 112, 3)))
    kernels = [leaf for name, leaf in found.items() if "kernel" in name and "shortcut" not in name and leaf.ndim > 2]
    return sum(kernel.shape[0] if kernel.ndim == 5 else 1 for kernel in kernels)


@pytest.mark.parametrize("depth", [4, 10, 20, 36, 64])
def test_depth_is_the_number_of_spherefaces_convolutions(depth):
    assert convolutions(SphereFace(depth=depth, width=2)) == depth


@pytest.mark.parametrize("depth", [18, 34, 50, 100])
def test_depth_is_the_number_of_iresnets_convolutions_without_shortcuts_and_the_last_product(depth):
    assert convolutions(IResNet(depth=depth, width=2)) + 1 == depth


def test_deepid_has_the_papers_channels_and_reads_two_scales():
    """Places of 39x31, halved three times rounding up: 5x4."""
    params = params_of(DeepID(), (39, 31, 1))
    shapes = [params[f"conv{i}"]["kernel"].shape for i in (1, 2, 3, 4)]
    assert shapes == [(4, 4, 1, 20), (3, 3, 20, 40), (3, 3, 40, 60), (2, 2, 60, 80)]
    assert params["out"]["kernel"].shape == (5 * 4 * (60 + 80), 160)


def test_sphereface_starts_as_the_papers_code_does():
    params = jax.jit(SphereFace(depth=10, width=32).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    unit = params["units2"]["blocks"]
    for conv in ("conv1", "conv2"):
        assert set(unit[conv]) == {"kernel"}
        assert np.std(unit[conv]["kernel"], axis=(1, 2, 3, 4)) == pytest.approx([0.01, 0.01], rel=0.02)
    for name, fan_in in (("down1", 9 * 32), ("down3", 9 * 128), ("out", 256)):
        limit = np.sqrt(3 / fan_in)  # of a uniform distribution with variance 1/fan-in
        assert np.abs(params[name]["kernel"]).max() == pytest.approx(limit, rel=0.01)
        assert np.var(params[name]["kernel"]) == pytest.approx(1 / fan_in, rel=0.02)
        np.testing.assert_array_equal(params[name]["bias"], 0.0)
    assert all((leaf == 0.25).all() for name, leaf in leaves(params).items() if "slope" in name)


@pytest.mark.thorough
def test_vit_fills_up_its_last_patches_with_zeros():
    net = NETS["vit"]
    variables = made(net)
    filled = jnp.pad(X, ((0, 0), (0, 3), (0, 3), (0, 0)))
    np.testing.assert_array_equal(embedded(net, variables, X), embedded(net, variables, filled))


def test_vit_tells_places_apart():
    variables = made(NETS["vit"])
    image = X[:, :12, :12]
    elsewhere = jnp.roll(image, 4, axis=1)  # the same patches
    assert jnp.abs(embedded(NETS["vit"], variables, elsewhere) - embedded(NETS["vit"], variables, image)).max() > 1e-2


# Training.


def test_every_parameter_of_every_block_gets_a_gradient(net_and_variables):
    net, variables = net_and_variables
    state = {k: v for k, v in variables.items() if k != "params"}
    # With running statistics: those of the batch take away any shift, and with it the gradients of shifts before them.
    loss = lambda params: jnp.sum(jnp.sin(net.apply({"params": params} | state, X)))  # noqa: E731
    for name, gradient in leaves(jax.jit(jax.grad(loss))(variables["params"])).items():
        rows = gradient if "blocks" in name else gradient[None]
        assert all(np.abs(row).max() > 0 for row in rows), name


@pytest.mark.parametrize("name", tiers(["sphereface", "iresnet", "vit", "mlp"], first=("mlp",)))
def test_checkpointing_changes_neither_gradients_nor_statistics(name):
    net = NETS[name]
    variables = made(net)
    state = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, net):
        out, after = trained(net, {"params": params} | state, X)
        return jnp.sum(jnp.sin(out)), after

    both = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    plain, saved = (both(variables["params"], net.clone(remat=remat)) for remat in ("none", "full"))
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("name", ["sphereface", "iresnet", "vit", "mlp"])
def test_checkpointing_reaches_the_blocks(name):
    def text(remat):
        net = NETS[name].clone(remat=remat)
        return str(jax.make_jaxpr(net.apply)(jax.eval_shape(net.init, jax.random.key(0), X), X))

    assert "remat" in text("full")
    assert "remat" not in text("none")


@pytest.mark.parametrize("name", tiers(["iresnet", "mlp"], first=("mlp",)))
def test_dropout_is_of_training_alone_and_follows_its_key(name):
    net = NETS[name]
    variables = made(net)
    run = lambda net, key: trained(net, variables, X, key)[0]  # noqa: E731
    assert not np.allclose(run(net, 0), run(net, 1))
    np.testing.assert_array_equal(run(net, 0), run(net, 0))
    np.testing.assert_array_equal(embedded(net, variables, X), embedded(net.clone(dropout=0.0), variables, X))


def test_one_image_alone_is_embedded_as_in_a_batch(net_and_variables):
    net, variables = net_and_variables
    whole, alone = embedded(net, variables, X), embedded(net, variables, X[2:3])
    np.testing.assert_allclose(alone[0], whole[2], rtol=1e-4, atol=1e-4 * float(jnp.abs(whole).max()))
    assert np.abs(whole[2] - whole[3]).max() > 1e-3 * np.abs(whole).max()


def test_half_precision_is_inside_only(net_and_variables):
    net, variables = net_and_variables
    low = net.clone(dtype="bfloat16")
    assert "bf16" in jax.jit(low.apply).lower(variables, X).as_text()
    assert "bf16" not in jax.jit(net.apply).lower(variables, X).as_text()
    assert embedded(low, variables, X).dtype == jnp.float32
    shapes = (
        jax.eval_shape(low.init, jax.random.key(0), X),
        jax.eval_shape(functools.partial(trained, low), variables, X),
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    full = embedded(net, variables, X)
    assert float(jnp.abs(embedded(low, variables, X) - full).mean()) < 0.1 * float(jnp.abs(full).mean())


# Batch statistics.


class Normed(nn.Module):
    """A block that keeps statistics and knows a context."""

    @nn.compact
    def __call__(self, h, c, train=False):
        y = Conv3x3(3, None, name="conv")(h + c[:, None, None, :])
        return h + nn.silu(nn.BatchNorm(not train, momentum=0.8, name="norm")(y))


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("train", [True, False])
def test_stacked_statistics_are_those_of_a_loop(depth, train):
    h, c = jax.random.normal(jax.random.key(1), (5, 6, 4, 3)), jax.random.normal(jax.random.key(2), (5, 3))
    block = Normed(parent=None)
    fresh = Stack(block, depth).init(jax.random.key(0), h, c)
    np.testing.assert_array_equal(fresh["batch_stats"]["blocks"]["norm"]["mean"], np.zeros((depth, 3)))
    np.testing.assert_array_equal(fresh["batch_stats"]["blocks"]["norm"]["var"], np.ones((depth, 3)))
    variables = moved(fresh)
    how = {"train": train, "rngs": {"dropout": jax.random.key(3)}, "mutable": ["batch_stats"]}
    (last, every), after = Stack(block, depth, every=True).apply(variables, h, c, **how)
    for i in range(depth):
        own = {name: unit_of(tree, i) for name, tree in variables.items()}
        h, stats = block.apply(own, h, c, **how)
        np.testing.assert_allclose(every[i], h, atol=1e-5)
        for name, value in stats["batch_stats"]["norm"].items():
            np.testing.assert_allclose(after["batch_stats"]["blocks"]["norm"][name][i], value, atol=1e-5)
            assert (value != own["batch_stats"]["norm"][name]).all() == train
    np.testing.assert_allclose(last, h, atol=1e-5)


def test_first_statistics_are_fresh_in_training_too():
    h, c = jnp.ones((5, 6, 4, 3)), jnp.ones((5, 3))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    stats = Stack(Normed(parent=None), 2).init(keys, h, c, train=True)["batch_stats"]["blocks"]["norm"]
    np.testing.assert_array_equal(stats["mean"], 0.0)
    np.testing.assert_array_equal(stats["var"], 1.0)


def test_statistics_that_may_not_be_written_are_an_error_in_training():
    h, c, stack = jnp.ones((5, 6, 4, 3)), jnp.ones((5, 3)), Stack(Normed(parent=None), 2)
    variables = stack.init(jax.random.key(0), h, c)
    with pytest.raises(ModifyScopeVariableError, match="batch_stats"):
        stack.apply(variables, h, c, train=True, rngs={"dropout": jax.random.key(0)})


@pytest.mark.thorough
def test_training_moves_all_statistics_and_inference_none():
    variables = made(UNDROPPED)
    _, after = trained(UNDROPPED, variables, X)
    assert jax.tree.structure(after["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    for name, leaf in leaves(after["batch_stats"]).items():
        before = leaves(variables["batch_stats"])[name]
        rows = zip(leaf, before, strict=True) if "blocks" in name else [(leaf, before)]
        assert all((a != b).any() for a, b in rows), name
    _, after = jax.jit(functools.partial(UNDROPPED.apply, mutable=["batch_stats"]))(variables, X)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])


@pytest.mark.thorough
def test_eight_devices_see_one_batch():
    variables = made(UNDROPPED)
    mesh = Mesh().build()
    assert mesh.size == 8
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    step = jax.jit(functools.partial(trained, UNDROPPED), in_shardings=(whole, split), out_shardings=(split, whole))
    (h, stats), (one_h, one_stats) = step(variables, X), trained(UNDROPPED, variables, X)
    assert len(h.sharding.device_set) == 8
    np.testing.assert_allclose(h, one_h, atol=2e-3 * float(jnp.abs(one_h).max()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), stats, one_stats)


def test_an_embedder_carries_them_along():
    model = Embedder(net=NETS["iresnet"], classes=3)
    variables = jax.eval_shape(model.init, jax.random.key(0), {"x": X})
    assert set(variables["state"]["net"]) == {"batch_stats"}
    h, state = jax.eval_shape(model.train_embed, variables, X, jax.random.key(1))
    assert (h.shape, state) == ((8, 8), variables["state"])
    assert jax.eval_shape(model.embed, variables, X).shape == (8, 8)
