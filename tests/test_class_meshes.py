"""A head's softmax on meshes of three axes: the numbers are those of one device, and each device does a part of it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from losses.class_chunks import Settings
from losses.fused_head import HeadSGD, fused_step
from losses.linear_cross_entropy import first_bias, linear_cross_entropy
from losses.margin_softmax import ArcFace, SphereFace2
from models.sharding import BATCH_AXES, axes_dividing
from tests.conftest import tiers
from tests.test_linear_cross_entropy import close

B, C, D, STEP = 12, 40, 8, 3
CASES = {  # margin, sub-centres, label smoothing
    "arcface": (ArcFace(scale=8.0), 1, 0.1),
    "sphereface2": (SphereFace2(scale=8.0), 1, 0.0),
    "sub-centres": (ArcFace(scale=8.0), 3, 0.0),
}
UPDATE, KEY = HeadSGD(learning_rate=0.3, weight_decay=0.1), jax.random.key(5)


def mesh_of(*sizes, names=(*BATCH_AXES, "model")):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def inputs(name):
    keys = jax.random.split(jax.random.key(0), 5)
    x = 3.0 * jax.random.normal(keys[0], (B, D))
    w, momentum = (jax.random.normal(key, (C, CASES[name][1], D)) for key in keys[1:3])
    if CASES[name][1] == 1:
        w, momentum = w[:, 0], momentum[:, 0]
    label = jax.random.randint(keys[3], (B,), 0, C).at[1].set(C - 1).at[2].set(C - 1)
    return jax.device_get((x, label, jax.random.normal(keys[4], (B,)), w, momentum))


def plain(name, axis, sample, chunk=7):
    """Values, which are told rightly, overflow; gradients of Σ upstreamᵢ·valueᵢ in x, b and W."""
    margin, _, smoothing = CASES[name]
    how = {"margin": margin, "step": STEP, "chunk": chunk, "class_axis": axis, "sample": sample, "key": KEY}

    def weighted(x, bias, w, label, upstream):
        found = linear_cross_entropy(x, w, label, label_smoothing=smoothing, bias=bias, **how)
        return jnp.sum(upstream * found.value), found

    def run(x, label, upstream, w, momentum):
        slopes, found = jax.grad(weighted, (0, 1, 2), has_aux=True)(x, 0.3, w, label, upstream)
        return found, slopes

    return run


def fused(name, axis, sample, chunk=7):
    margin, _, smoothing = CASES[name]

    def run(x, label, upstream, w, momentum):
        biases = jnp.full(len(label), 0.3 + first_bias(margin, C))
        how = Settings(margin, len(w), chunk, sample, smoothing, axis)
        return fused_step(how, UPDATE, x, w, momentum, biases, label, KEY, STEP)

    return run


def both(*how):
    return lambda *arguments: (plain(*how)(*arguments), fused(*how)(*arguments))


def jitted(mesh, axis, run, examples=B):
    batch, rows = NamedSharding(mesh, P(axes_dividing(examples))), NamedSharding(mesh, P(axis))
    return jax.jit(run, in_shardings=(batch, batch, batch, rows, rows))


def on_mesh(mesh, axis, name, sample):
    arguments = inputs(name)
    with jax.set_mesh(mesh):
        found = jitted(mesh, axis, both(name, axis, sample))(*arguments)
    for array in (found[0][1][2], found[1].w, found[1].momentum):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, P(axis)), array.ndim)
        for one in array.addressable_shards:  # devices that have the same rows have the same numbers, to the last bit
            for other in array.addressable_shards:
                assert one.index != other.index or np.array_equal(one.data, other.data)
    return jax.device_get(found)


@cache
def expected(name, sample, shards):
    """Without a mesh; or, as each shard draws for itself, on one of so many devices that has no axes for a batch."""
    if sample < 1.0:
        return on_mesh(mesh_of(shards, names=("classes",)), "classes", name, sample)
    return jax.device_get(jax.jit(both(name, None, sample))(*inputs(name)))


@pytest.mark.parametrize(
    ("sizes", "axis", "name", "sample"),
    tiers(  # each margin on every mesh, over every axis, and with a sample and without
        [
            ((2, 2, 2), "model", "arcface", 1.0),
            ((2, 2, 2), "model", "arcface", 0.25),
            ((2, 2, 2), "data", "sphereface2", 0.25),
            ((2, 2, 2), "fsdp", "sub-centres", 1.0),
            ((4, 1, 2), "model", "sphereface2", 1.0),
            ((4, 1, 2), "data", "sub-centres", 0.25),
            ((4, 1, 2), "fsdp", "arcface", 1.0),
            ((1, 2, 4), "model", "sub-centres", 0.25),
            ((1, 2, 4), "data", "arcface", 1.0),
            ((1, 2, 4), "fsdp", "sphereface2", 1.0),
            ((4, 2, 1), "fsdp", "arcface", 1.0),  # which does not divide the examples
        ],
        first=(((1, 2, 4), "fsdp", "sphereface2", 1.0),),
    ),
    ids=str,
)
def test_the_loss_its_gradients_and_the_fused_step_are_those_of_one_device(sizes, axis, name, sample):
    mesh = mesh_of(*sizes)
    found = on_mesh(mesh, axis, name, sample)
    assert (found[0][0].overflow > 0) == (sample < 1.0)
    close(found, expected(name, sample, mesh.shape[axis] if sample < 1.0 else 0))


def test_a_batchs_axes_are_those_of_the_mesh_that_divide_it():
    assert axes_dividing(16) == ()
    with jax.set_mesh(mesh_of(2, 2, 2)):
        assert (axes_dividing(16), axes_dividing(6)) == (BATCH_AXES, ())
    with jax.set_mesh(mesh_of(1, 2, 4)):
        assert axes_dividing(6) == ("fsdp",)


@pytest.mark.parametrize("make", [plain, fused])
def test_each_device_has_a_part_of_the_examples_and_a_part_of_the_classes(make):
    """Its operations and its memory, beside those of two devices that split W alone."""
    classes, examples = 4096, 256
    shapes = [(examples, D), (examples,), (examples,), (classes, D), (classes, D)]
    kinds = [jnp.float32, jnp.int32, *[jnp.float32] * 3]
    arguments = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]

    def cost(mesh, axis):
        with jax.set_mesh(mesh):
            step = jitted(mesh, axis, make("arcface", axis, 1.0, classes), examples)
            compiled = step.lower(*arguments).compile()
        return np.asarray([compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes])

    two = cost(mesh_of(1, 1, 2), "model")
    for axis, part in (("model", 1 / 4), ("data", 1 / 2)):
        np.testing.assert_allclose(cost(mesh_of(2, 2, 2), axis), part * two, rtol=0.15)
