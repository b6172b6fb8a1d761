"""The chunked, sharded and sampled cross-entropy against one that holds all its logits."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from losses.class_chunks import Settings
from losses.class_table import NO_CLASS, sampled, whole
from losses.fused_head import HeadSGD, carried, fused_step
from losses.linear_cross_entropy import first_bias, linear_cross_entropy
from losses.margin_softmax import (
    AdaFace,
    ArcFace,
    ASoftmax,
    BinaryMargin,
    CombinedMargin,
    CosFace,
    LSoftmax,
    MagFace,
    NormFace,
    Softmax,
    SphereFace2,
)
from tests.conftest import tiers

B, C, D, STEP = 12, 40, 8, 3
MARGINS = {
    "softmax": Softmax(),
    "l_softmax": LSoftmax(),
    "a_softmax": ASoftmax(),
    "normface": NormFace(scale=8.0),
    "cosface": CosFace(scale=8.0),
    "arcface": ArcFace(scale=8.0),
    "arcface_detached": ArcFace(scale=8.0, gradient="detached"),
    "combined": CombinedMargin(scale=8.0, m1=1.2),
    "adaface": AdaFace(scale=8.0),
    "magface": MagFace(scale=8.0, low=2.0, high=12.0),
    "sphereface2": SphereFace2(scale=8.0),
}

KINDS = ("arcface", "softmax", "sphereface2")


def inputs(centres=1):
    keys = jax.random.split(jax.random.key(0), 4)
    w = jax.random.normal(keys[1], (C, D) if centres == 1 else (C, centres, D))
    upstream = jax.random.normal(keys[3], (B,))
    label = jax.random.randint(keys[2], (B,), 0, C).at[1].set(C - 1).at[2].set(C - 1)
    return 3.0 * jax.random.normal(keys[0], (B, D)), w, label, upstream


def direction(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def naive(x, w, label, margin, smoothing=0.0, bias=0.0):
    """B×C logits, the target's put in its place."""
    rows = direction(w) if margin.UNIT_WEIGHTS else w
    u = margin.scale * direction(x) if margin.UNIT_FEATURES else x
    z = jnp.max(jnp.einsum("bd,ckd->bck", u, rows.reshape(C, -1, D)), axis=2)
    own = w.reshape(C, -1, D)[label]
    cos = jnp.einsum("bd,bkd->bk", direction(x), direction(own))
    best = jnp.argmax(cos, axis=1)
    norm = jnp.linalg.norm(x, axis=1)
    length = norm if margin.UNIT_WEIGHTS else norm * jnp.linalg.norm(own[jnp.arange(B), best], axis=1)
    t = margin.plain(jnp.max(cos, axis=1), length)
    t = t + margin.shift(jnp.max(cos, axis=1), length, label, STEP)
    hot = jax.nn.one_hot(label, C)
    if isinstance(margin, BinaryMargin):
        b = first_bias(margin, C) + bias
        rest = jnp.sum((1.0 - hot) * jax.nn.softplus(margin.other(z) + b), axis=1)
        return (margin.balance * jax.nn.softplus(-t - b) + (1.0 - margin.balance) * rest) / margin.scale
    log_p = jax.nn.log_softmax(hot * t[:, None] + (1.0 - hot) * z)
    value = -(1.0 - smoothing) * jnp.sum(hot * log_p, axis=1) - smoothing * jnp.mean(log_p, axis=1)
    return value + margin.extra(norm)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def close(found, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert np.abs(one - other).max() <= tolerance * max(np.abs(other).max(), 1e-3)


def value_and_slopes(loss, upstream, mesh=None):
    """Values, and the gradients of Σ upstreamᵢ·valueᵢ in x and w; w's rows over the mesh, if there is one."""

    def weighted(x, w):
        value = loss(x, w)
        return jnp.sum(upstream * value), value

    run = jax.value_and_grad(weighted, (0, 1), has_aux=True)
    if mesh is None:
        return lambda x, w: (lambda out: (out[0][1], out[1]))(jax.jit(run)(x, w))
    places = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def over(x, w):
        with jax.set_mesh(mesh):
            (_, value), slopes = jax.jit(run, in_shardings=places)(x, w)
        assert slopes[1].sharding.spec == PartitionSpec("data")
        return value, slopes

    return over


@functools.cache
def expected_of(name, smoothing=0.0, centres=1):
    x, w, label, upstream = inputs(centres)
    return value_and_slopes(lambda x, w: naive(x, w, label, MARGINS[name], smoothing), upstream)(x, w)


@pytest.mark.parametrize(
    ("name", "chunk", "axis"),  # every margin in chunks; whole and split, those of three kinds
    tiers(
        itertools.product(MARGINS, (7, 0), (None, "data")),
        first=lambda name, chunk, axis: (
            (chunk == 7 and not axis and name not in ("l_softmax", "cosface", "combined"))
            or (chunk == 7 and name in KINDS[:2])
            or (name == "arcface" and not axis)
        ),
    ),
)
def test_the_loss_and_its_gradients_equal_the_naive_ones(name, chunk, axis, mesh):
    """Whole and in chunks that do not divide the rows, on one device and eight, with and without a sample of all."""
    x, w, label, upstream = inputs()
    expected = expected_of(name)
    for sample in ({}, {"sample": 1.0, "key": jax.random.key(7)})[: 1 + (name in KINDS)]:
        how = {"margin": MARGINS[name], "step": STEP, "chunk": chunk, "class_axis": axis, **sample}

        def loss(x, w, how=how):
            return linear_cross_entropy(x, w, label, **how).value

        close(value_and_slopes(loss, upstream, mesh if axis else None)(x, w), expected)


@pytest.mark.parametrize(
    ("name", "axis"),
    tiers(
        itertools.product([name for name in MARGINS if name != "sphereface2"], (None, "data")),
        first=lambda name, axis: name == "arcface" or (not axis and name == "magface"),
    ),
)
def test_label_smoothing_is_that_of_the_logits_with_their_margin(name, axis, mesh):
    x, w, label, upstream = inputs()
    expected = expected_of(name, smoothing=0.1)
    how = {"margin": MARGINS[name], "step": STEP, "chunk": 9, "class_axis": axis, "label_smoothing": 0.1}

    def loss(x, w):
        return linear_cross_entropy(x, w, label, **how).value

    close(value_and_slopes(loss, upstream, mesh if axis else None)(x, w), expected)


@pytest.mark.parametrize(
    ("name", "axis"),
    tiers(itertools.product(KINDS, (None, "data")), first=lambda name, axis: bool(axis) == (name == "sphereface2")),
)
def test_of_several_sub_centres_the_nearest_speaks_for_its_class(name, axis, mesh):
    x, w, label, upstream = inputs(centres=3)
    expected = expected_of(name, centres=3)
    how = {"margin": MARGINS[name], "step": STEP, "chunk": 9, "class_axis": axis}

    def loss(x, w):
        return linear_cross_entropy(x, w, label, **how).value

    close(value_and_slopes(loss, upstream, mesh if axis else None)(x, w), expected)


def test_in_float64_they_agree_to_1e_12():
    with jax.enable_x64():
        x, w, label, upstream = jax.tree.map(lambda a: a.astype("float64") if a.dtype == "float32" else a, inputs())
        expected = value_and_slopes(lambda x, w: naive(x, w, label, MARGINS["arcface"]), upstream)(x, w)

        def loss(x, w):
            return linear_cross_entropy(x, w, label, margin=MARGINS["arcface"], step=STEP, chunk=9).value

        close(value_and_slopes(loss, upstream)(x, w), expected, 1e-12)


def test_bfloat16_embeddings_are_summed_in_float32():
    x, w, label, _ = inputs()
    half = x.astype(jnp.bfloat16)
    found = linear_cross_entropy(half, w, label, margin=MARGINS["arcface"], chunk=9).value
    assert found.dtype == jnp.float32
    close(found, linear_cross_entropy(half.astype(jnp.float32), w, label, margin=MARGINS["arcface"]).value, 1e-6)


@pytest.mark.parametrize("axis", [None, "data"])
def test_rows_that_pad_a_head_are_no_classes(axis, mesh):
    x, w, _, upstream = inputs()
    label = jnp.arange(B) % 33

    def few(x, w):
        return linear_cross_entropy(x, w[:33], label, margin=MARGINS["arcface"], chunk=6).value

    how = {"margin": MARGINS["arcface"], "chunk": 3, "classes": 33, "class_axis": axis}

    def padded(x, w):
        return linear_cross_entropy(x, w, label, **how).value

    close(value_and_slopes(padded, upstream, mesh if axis else None)(x, w), value_and_slopes(few, upstream)(x, w))


@pytest.mark.thorough
def test_a_bias_is_learned_by_a_binary_loss():
    x, w, label, upstream = inputs()
    margin = MARGINS["sphereface2"]

    def total(b):
        return jnp.sum(upstream * linear_cross_entropy(x, w, label, margin=margin, bias=b, chunk=7).value)

    expected = jax.grad(lambda b: jnp.sum(upstream * naive(x, w, label, margin, bias=b)))(0.3)
    assert float(jax.grad(total)(0.3)) == pytest.approx(float(expected), rel=1e-5)


def test_it_says_which_examples_are_told_rightly():
    x, w, label, _ = inputs()
    right = jnp.argmax(direction(x) @ direction(w).T, axis=1) == label
    x = x.at[:4].set(w[label[:4]])
    right = right.at[:4].set(True)
    assert 4 <= int(right.sum()) < B
    for name in ("arcface", "sphereface2"):
        found = linear_cross_entropy(x, w, label, margin=MARGINS[name], chunk=7).correct
        np.testing.assert_array_equal(found, right.astype(jnp.float32))


def test_its_temporary_memory_does_not_grow_with_the_classes():
    def temporary(classes, chunk):
        shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((64, D), (classes, D))]

        def loss(x, w):
            return linear_cross_entropy(x, w, jnp.zeros(64, jnp.int32), chunk=chunk).value

        return jax.jit(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    ids = 4 * (65536 - 8192)  # of the rows, which are all that grows
    assert temporary(65536, 512) - temporary(8192, 512) < 1.1 * ids
    assert temporary(65536, 512) < 0.1 * temporary(65536, 65536)


# A part of the classes


def rows_of(label, size, classes, rate, seed=0):
    table = sampled(jnp.asarray(label), size, classes, rate, jax.random.key(seed))
    return table, np.asarray(table.ids), np.asarray(table.rows), np.asarray(table.place)


def test_a_sample_holds_the_batchs_classes_once_each_and_others_without_repetition():
    label = [5, 90, 5, 17, 90, 3]
    for seed in range(20):
        table, ids, rows, place = rows_of(label, 100, 100, 0.2, seed)
        rivals = ids[ids != NO_CLASS]
        assert len(ids) == 20
        assert len(set(rivals)) == len(rivals) >= 16
        assert set(rivals) >= set(label)
        np.testing.assert_array_equal(rows[place], label)
        assert int(table.overflow) == 0


def test_every_other_class_is_drawn_as_often_as_any():
    """3 of 28 slots are the batch's own; strata are of one class and of two."""
    label, draws = jnp.asarray([1, 20, 39, 20]), 4000

    def draw(key):
        return sampled(label, 40, 40, 0.7, key).ids

    ids = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws)))
    share = np.bincount(ids[ids != NO_CLASS], minlength=40) / draws
    assert (share[[1, 20, 39]] == 1.0).all()
    others = np.delete(share, [1, 20, 39])
    expected = 25 / 40  # that a stratum is in a slot behind the batch's own, and the class drawn of it
    np.testing.assert_allclose(others, expected, atol=4.5 * np.sqrt(expected * (1 - expected) / draws))


def test_more_classes_than_slots_are_counted_as_overflow_and_keep_their_own_loss():
    label = np.arange(10)
    table, ids, rows, place = rows_of(label, 40, 40, 0.1)
    assert int(table.overflow) == 6
    assert set(ids[ids != NO_CLASS]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(rows[place], label)
    x, w, _, _ = inputs()
    how = {"margin": MARGINS["arcface"], "sample": 0.1, "key": jax.random.key(0)}
    found = linear_cross_entropy(x[:10], w, jnp.asarray(label), **how)
    few = linear_cross_entropy(x[:4], w[:4], jnp.asarray(label[:4]), margin=MARGINS["arcface"])
    close(found.value[:4], few.value)
    assert int(found.overflow) == 6
    assert np.isfinite(np.asarray(found.value)).all()


def test_a_shard_takes_the_classes_that_are_its_own():
    table, ids, _, place = rows_of([-3, 7, 12, 7, 40], 20, 15, 0.5)
    assert set(ids[ids != NO_CLASS]) <= set(range(15))
    assert {7, 12} <= set(ids)
    assert list(place[[0, 4]]) == [len(ids)] * 2
    everything = whole(jnp.asarray([-3, 7]), 20, 15)
    assert list(np.asarray(everything.ids)) == [*range(15), *[NO_CLASS] * 5]
    assert list(np.asarray(everything.place)) == [20, 7]
    assert table.overflow == 0


@pytest.mark.parametrize(
    ("name", "axis"),
    tiers(itertools.product(KINDS, (None, "data")), first=(("arcface", None), ("sphereface2", "data"))),
)
def test_a_sampled_loss_is_that_of_the_classes_it_looked_at(name, axis, mesh):
    """Its value and its gradients, which are 0 in all other rows."""
    margin = MARGINS[name]
    x, w, _, upstream = inputs()
    label = jnp.asarray([0, 39, 0, 17, 22, 5, 6, 38, 17, 1, 30, 31])
    how = {"margin": margin, "step": STEP, "chunk": 4, "class_axis": axis, "sample": 0.7, "key": jax.random.key(5)}
    if axis is None:
        table = sampled(label, C, C, 0.7, jax.random.key(5))
        seen = np.asarray(table.ids)
    else:
        keys = [jax.random.fold_in(jax.random.key(5), d) for d in range(8)]
        parts = [np.asarray(sampled(label - 5 * d, 5, 5, 0.7, key).ids) for d, key in enumerate(keys)]
        seen = np.concatenate([np.where(ids == NO_CLASS, NO_CLASS, ids + 5 * d) for d, ids in enumerate(parts)])
    looked_at = jnp.zeros(C).at[seen[seen != NO_CLASS]].set(1.0)
    assert 20 < float(looked_at.sum()) < C

    def expected(x, w):
        rows = direction(w) if margin.UNIT_WEIGHTS else w
        z = margin.other((margin.scale * direction(x) if margin.UNIT_FEATURES else x) @ rows.T)
        full = naive(x, w, label, margin)
        counts = looked_at[None] * (1.0 - jax.nn.one_hot(label, C))
        if isinstance(margin, BinaryMargin):  # leave out what was not looked at
            out = (1.0 - looked_at)[None] * (1.0 - jax.nn.one_hot(label, C))
            unseen = jnp.sum(out * jax.nn.softplus(z + first_bias(margin, C)), axis=1)
            return full - (1.0 - margin.balance) * unseen / margin.scale
        everyone = jax.nn.logsumexp(jnp.where(1.0 - jax.nn.one_hot(label, C) > 0, z, -jnp.inf), axis=1)
        t = everyone - jnp.log(jnp.expm1(full))  # from full = log(1 + e^(everyone − t))
        return jax.nn.softplus(jax.nn.logsumexp(jnp.where(counts > 0, z, -jnp.inf), axis=1) - t)

    def loss(x, w):
        return linear_cross_entropy(x, w, label, **how).value

    found = value_and_slopes(loss, upstream, mesh if axis else None)(x, w)
    close(found, value_and_slopes(expected, upstream)(x, w), 1e-4)
    np.testing.assert_array_equal(np.asarray(found[1][1])[np.asarray(looked_at) == 0.0], 0.0)


# The head's own step


def settings(margin, **changes):
    return replace(Settings(margin, C, 7), **changes)


def sgd(w, momentum, slope, update, step):
    momentum = update.momentum * momentum + slope + update.weight_decay * w
    return w - update.rate(step) * momentum, momentum


@pytest.mark.parametrize(
    ("name", "centres", "axis"),
    tiers(
        itertools.product(KINDS, (1, 2), (None, "data")),
        first=(("sphereface2", 1, None),),
    ),
)
def test_the_fused_step_is_the_step_of_the_gradient(name, centres, axis, mesh):
    margin, update = MARGINS[name], HeadSGD(learning_rate=0.3, weight_decay=0.1)
    x, w, label, upstream = inputs(centres)
    momentum = 0.1 * jax.random.normal(jax.random.key(9), w.shape)

    def loss(x, w):
        return linear_cross_entropy(x, w, label, margin=margin, step=STEP).value

    slope = jax.grad(lambda w: jnp.mean(loss(x, w)))(w)
    expected = sgd(w, momentum, slope, update, STEP)
    slope_x = jax.grad(lambda x: jnp.sum(upstream * loss(x, w)))(x)
    biases = jnp.full(B, first_bias(margin, C))

    def step(x, w, momentum):
        def total(x):
            found = fused_step(
                settings(margin, axis=axis), update, jax.lax.stop_gradient(x), w, momentum, biases, label, None, STEP
            )
            value = carried(found, x, biases)
            return jnp.sum(upstream * value), (value, found.w, found.momentum)

        return jax.grad(total, has_aux=True)(x)

    if axis:
        rows = NamedSharding(mesh, PartitionSpec("data"))
        with jax.set_mesh(mesh):
            found = jax.jit(step, in_shardings=(None, rows, rows))(x, w, momentum)
        assert found[1][1].sharding.spec == PartitionSpec("data")
    else:
        found = jax.jit(step)(x, w, momentum)
    close(found, (slope_x, (loss(x, w), *expected)))


@pytest.mark.parametrize("axis", [None, "data"])
def test_a_sampled_fused_step_moves_the_rows_that_it_looked_at_alone(axis, mesh):
    margin, update = MARGINS["arcface"], HeadSGD(learning_rate=0.3)
    x, w, label, _ = inputs()
    momentum, key = jnp.ones_like(w), jax.random.key(4)
    how = {"margin": margin, "step": STEP, "sample": 0.7, "key": key, "class_axis": axis}

    def both(x, w, momentum):
        slope = jax.grad(lambda w: jnp.mean(linear_cross_entropy(x, w, label, **how).value))(w)
        args = (update, x, w, momentum, jnp.zeros(B), label, key, STEP)
        return slope, fused_step(settings(margin, sample=0.7, axis=axis), *args)

    if axis:
        rows = NamedSharding(mesh, PartitionSpec("data"))
        with jax.set_mesh(mesh):
            slope, found = jax.jit(both, in_shardings=(None, rows, rows))(x, w, momentum)
    else:
        slope, found = jax.jit(both)(x, w, momentum)
    moved = np.abs(np.asarray(slope)).max(axis=1) > 0
    assert B / 2 < moved.sum() < C
    expected = sgd(w, momentum, slope, update, STEP)
    close((found.w[moved], found.momentum[moved]), (expected[0][moved], expected[1][moved]))
    np.testing.assert_array_equal(np.asarray(found.w)[~moved], np.asarray(w)[~moved])
    np.testing.assert_array_equal(np.asarray(found.momentum)[~moved], 1.0)


def test_the_heads_rate_rises_and_falls():
    update = HeadSGD(learning_rate=2.0, warmup=4, decay_steps=100)
    assert float(update.rate(0)) == pytest.approx(0.5, rel=1e-3)
    assert float(update.rate(50)) == pytest.approx(1.0)
    assert float(update.rate(100)) == pytest.approx(0.0, abs=1e-6)
    assert float(HeadSGD(learning_rate=2.0).rate(10**6)) == 2.0


# What cannot be


def test_what_does_not_fit_is_named():
    x, w, label, _ = inputs()
    with pytest.raises(ValueError, match="embeddings have 5 features, but the rows of the head 8"):
        linear_cross_entropy(x[:, :5], w, label)
    with pytest.raises(ValueError, match="label 40 is not among the 40 classes 0 … 39"):
        linear_cross_entropy(x, w, label.at[3].set(40))
    with pytest.raises(ValueError, match="label -1 is not among"):
        linear_cross_entropy(x, w, label.at[3].set(-1))
    with pytest.raises(ValueError, match=r"sample=0\.5 takes a key"):
        linear_cross_entropy(x, w, label, sample=0.5)
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        linear_cross_entropy(x, w[:1], jnp.zeros_like(label))
    with pytest.raises(ValueError, match="0 where each class is told by itself"):
        linear_cross_entropy(x, w, label, margin=SphereFace2(), label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"chunk=-1 must be at least 0, sample=1\.0 in \(0, 1\]"):
        linear_cross_entropy(x, w, label, chunk=-1)
    for wrong in ({"sample": 0.0}, {"sample": 5.0}, {"smoothing": 3.0}, {"chunk": -1}):  # the fused step's, too
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            settings(NormFace(), **wrong)


def test_what_is_nowhere_is_told_to_be_of_no_class():
    x, w, label, _ = inputs()
    found = linear_cross_entropy(jnp.zeros_like(x), w, label, margin=MARGINS["arcface"], chunk=7)
    np.testing.assert_array_equal(found.correct, 0.0)
