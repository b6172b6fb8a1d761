"""Margins against their papers' formulas in θ, and their gradients against differences, in float64."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.class_chunks import logits_of
from losses.linear_cross_entropy import linear_cross_entropy, logit_of_target, scaled
from losses.margin_softmax import (
    AdaFace,
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    LSoftmax,
    MagFace,
    NormFace,
    Softmax,
    SphereFace2,
    least_scale,
)
from tests.conftest import tiers

S, M = 16.0, 0.5
R = 2.5  # r, where norms matter
PURE = {"start": 0.0, "least": 0.0}  # λ = 0: ψ alone


def psi(theta, m):
    k = np.floor(m * theta / np.pi)
    return (-1.0) ** k * np.cos(m * theta) - 2.0 * k


def hard(theta, m=M):
    return np.where(theta < np.pi - m, np.cos(theta + m), np.cos(theta) - m * np.sin(m))


def spread(phi):
    k = np.floor(phi / np.pi)
    return (-1.0) ** k * np.cos(phi) - 2.0 * k


# The margin, its paper's formula, and the angles at which it jumps.
MARGINS = {
    "softmax": (Softmax(), lambda t: R * np.cos(t), ()),
    **{f"l_softmax_{m}": (LSoftmax(m=m, **PURE), lambda t, m=m: R * psi(t, m), ()) for m in (1, 2, 3, 4, 5)},
    "a_softmax": (ASoftmax(**PURE), lambda t: R * psi(t, 4), ()),
    "a_softmax_annealed": (ASoftmax(start=2.0, least=2.0), lambda t: R * (2 * np.cos(t) + psi(t, 4)) / 3, ()),
    "normface": (NormFace(scale=S), lambda t: S * np.cos(t), ()),
    "cosface": (CosFace(scale=S), lambda t: S * (np.cos(t) - 0.35), ()),
    "arcface": (ArcFace(scale=S), lambda t: S * hard(t), (np.pi - M,)),
    "arcface_exact": (ArcFace(scale=S, beyond="exact"), lambda t: S * np.cos(t + M), ()),
    "arcface_easy": (
        ArcFace(scale=S, beyond="easy"),
        lambda t: S * np.where(t < np.pi / 2, np.cos(t + M), np.cos(t)),
        (np.pi / 2,),
    ),
    "combined": (CombinedMargin(scale=S, m1=1.2), lambda t: S * (spread(1.2 * t + 0.3) - 0.2), ()),
    "combined_2": (CombinedMargin(scale=S, m1=2.0, m2=0.0, m3=0.0), lambda t: S * psi(t, 2), ()),
    "magface": (MagFace(scale=S, low=1.0, high=4.0), lambda t: S * hard(t, 0.625), (np.pi - 0.625,)),
    "sphereface2": (SphereFace2(scale=S), lambda t: S * (2 * ((np.cos(t) + 1) / 2) ** 3 - 1 - 0.4), ()),
}
SPECIAL = [0.0, np.pi, np.pi / 2, np.pi - M, *(k * np.pi / m for m in (2, 3, 4, 5) for k in range(1, m))]
ANGLES = np.sort(np.concatenate([np.linspace(0.0, np.pi, 41), SPECIAL]))
LABEL = jnp.zeros(1, jnp.int32)


def logit(margin, cos, norm=R):
    def one(value):
        return jnp.reshape(jnp.asarray(value), 1)

    return margin.target(one(cos), one(norm), LABEL, 10**9)[0]


@pytest.mark.parametrize("name", MARGINS)
def test_a_margins_value_is_its_papers_formula(name):
    margin, formula, jumps = MARGINS[name]
    angles = np.asarray([t for t in ANGLES if all(abs(t - jump) > 1e-9 for jump in jumps)])
    with jax.enable_x64():
        found = jax.vmap(lambda c: logit(margin, c))(jnp.cos(jnp.asarray(angles)))
    np.testing.assert_allclose(found, formula(angles), rtol=0, atol=1e-7)  # cos loses half its digits near 0 and π


@pytest.mark.parametrize("name", MARGINS)
def test_its_exact_gradient_is_that_of_finite_differences_over_all_angles(name):
    """At 0 and π over cosθ's even continuation; where the value jumps, on the side that was taken."""
    margin, _, jumps = MARGINS[name]
    with jax.enable_x64():
        f = jax.jit(lambda t: logit(margin, jnp.cos(t)))
        slope = jax.jit(jax.grad(f))
        for angle in ANGLES:
            step = 1e-6
            at = [float(f(angle + d * step)) for d in (-2, -1, 0, 1, 2)]
            found = float(slope(angle))
            if any(abs(angle - jump) < 1e-9 for jump in jumps):
                sides = [(at[1] - at[0]) / step, (at[4] - at[3]) / step]
                assert min(abs(found - side) for side in sides) < 1e-3
            else:
                assert found == pytest.approx((at[3] - at[1]) / (2 * step), abs=2e-4 * max(margin.scale, 1.0)), angle


def test_adaface_turns_small_norms_and_lowers_large_ones():
    """ẑ is −1, 0 and 1 of norms that are far below, at and far above their mean."""
    margin = AdaFace(scale=S, h=10.0)
    norm = jnp.asarray([1.0, 2.0, 3.0])
    for theta in (0.2, 1.0, 2.0, 2.9):
        found = margin.target(jnp.full(3, np.cos(theta)), norm, jnp.zeros(3, jnp.int32), 0)
        arc = np.cos(min(theta + 0.4, np.pi))
        cosine = np.cos(max(theta - 0.4, 0.0)) - 0.8
        np.testing.assert_allclose(found, S * np.asarray([arc, np.cos(theta) - 0.4, cosine]), atol=2e-4)


def test_adaface_takes_the_norms_as_given():
    slope = jax.grad(lambda norm: jnp.sum(AdaFace().target(jnp.asarray([0.1, 0.5]), norm, jnp.zeros(2, jnp.int32), 0)))
    np.testing.assert_array_equal(slope(jnp.asarray([1.0, 2.0])), 0.0)


def test_adafaces_gradient_is_that_of_finite_differences_in_the_angle():
    norm = jnp.asarray([1.0, 2.0, 4.0])
    with jax.enable_x64():
        for theta in (0.1, 0.9, 1.7, 2.6, 3.0):

            def f(t):
                return jnp.sum(AdaFace(scale=S).target(jnp.cos(t) * jnp.ones(3), norm, jnp.zeros(3, jnp.int32), 0))

            difference = (f(theta + 1e-6) - f(theta - 1e-6)) / 2e-6
            assert float(jax.grad(f)(theta)) == pytest.approx(float(difference), abs=1e-4)


def test_magface_grows_its_margin_with_the_norm_and_pulls_the_norm_up():
    margin = MagFace(scale=S, low=1.0, high=4.0)
    with jax.enable_x64():
        for norm, m in ((0.5, 0.45), (1.0, 0.45), (2.5, 0.625), (4.0, 0.8), (9.0, 0.8)):
            assert float(logit(margin, np.cos(0.7), norm)) == pytest.approx(S * np.cos(0.7 + m), abs=1e-9)

        def g(a):
            return float(margin.extra(jnp.asarray([a]))[0])

        assert g(2.0) == pytest.approx(35.0 * (1 / 2.0 + 2.0 / 16.0))
        assert g(1.5) > g(2.5) > g(3.9)  # least at u
        slope = jax.grad(lambda a: logit(margin, np.cos(0.7), a))(2.5)
        assert float(slope) == pytest.approx(-S * np.sin(0.7 + 0.625) * 0.35 / 3.0, abs=1e-9)


@pytest.mark.parametrize("margin", [CosFace(m=0.0), ArcFace(m=0.0), CombinedMargin(m1=1.0, m2=0.0, m3=0.0)])
def test_without_its_margin_each_is_normface(margin):
    x, w, label = _inputs(jnp.float32)

    def loss(margin):
        f = lambda x, w: jnp.sum(linear_cross_entropy(x, w, label, margin=margin).value)  # noqa: E731
        return jax.jit(jax.value_and_grad(f, (0, 1)))(x, w)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), loss(margin), loss(NormFace()))


def test_l_softmax_of_one_is_softmax_bit_for_bit_also_where_an_embedding_is_0():
    x, w, label = _inputs(jnp.float32)
    x = x.at[0].set(0.0)

    def loss(margin):
        return jax.value_and_grad(lambda x, w: jnp.sum(linear_cross_entropy(x, w, label, margin=margin).value), (0, 1))(
            x, w
        )

    first, second = loss(LSoftmax(m=1, **PURE)), loss(Softmax())
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # and where x is 0 the gradient is that of the softmax: the mean of all rows less the class's own
    np.testing.assert_allclose(second[1][0][0], jnp.mean(w, axis=0) - w[label[0]], atol=1e-6)


def test_arcfaces_gradient_in_the_cosine_near_0_is_as_derived():
    """sin(θ + m)/sinθ ≈ cos m + sin m/θ."""
    with jax.enable_x64():
        for theta in (1e-2, 1e-3):
            slope = jax.grad(lambda c: logit(ArcFace(scale=1.0), c))(np.cos(theta))
            assert float(slope) == pytest.approx(np.cos(M) + np.sin(M) / theta, rel=1e-4)
        assert float(jax.grad(lambda c: logit(ArcFace(scale=1.0), c))(1.0)) == pytest.approx(np.cos(M))


def test_past_its_last_angle_hard_arcface_is_below_and_exact_arcface_rises():
    after = np.cos(np.pi - M + 0.01)
    step = 1.0 - np.cos(M) - M * np.sin(M)
    assert float(logit(ArcFace(scale=1.0), after)) - (-1.0) == pytest.approx(step, abs=0.01)
    rising = [float(logit(ArcFace(beyond="exact"), np.cos(np.pi - d))) for d in (M, 0.1, 0.0)]
    falling = [float(logit(ArcFace(beyond="hard"), np.cos(np.pi - d))) for d in (M + 1e-3, M - 1e-3, 0.1, 0.0)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("margin", [ArcFace, CosFace, SphereFace2, LSoftmax, ASoftmax])
def test_a_detached_margin_has_the_value_of_the_margin_and_the_gradient_of_none(margin):
    cos, norm = jnp.asarray([0.3]), jnp.asarray([R])
    exact, detached = margin(), margin(gradient="detached")

    def value(margin):
        return lambda cos: jnp.sum(margin.plain(cos, norm) + margin.shift(cos, norm, LABEL, 10**9))

    np.testing.assert_allclose(value(exact)(cos), value(detached)(cos), rtol=1e-6)
    slope = jax.grad(value(detached))(cos)
    np.testing.assert_allclose(slope, margin.scale if margin.UNIT_FEATURES else R, rtol=1e-6)
    if margin is not CosFace:  # whose two gradients are one
        assert abs(float((jax.grad(value(exact))(cos) - slope)[0])) > 0.1


@pytest.mark.parametrize("margin", [ArcFace, CosFace, CombinedMargin, MagFace])
def test_a_margin_rises_in_its_warm_up(margin):
    found = [logit_at(margin(warmup=10), step) for step in (0, 3, 10, 50)]
    assert found[0] == pytest.approx(64.0 * 0.3, rel=1e-5)
    assert found[0] > found[1] > found[2] == found[3] == logit_at(margin(), 0)


def logit_at(margin, step):
    return float(margin.target(jnp.asarray([0.3]), jnp.asarray([20.0]), LABEL, step)[0])


def test_a_softmax_is_annealed_from_the_plain_logit_to_a_sixth_of_its_own():
    margin = ASoftmax()

    def share(step):
        return (logit_at(margin, step) / 20.0 - 0.3) / (psi(np.arccos(0.3), 4) - 0.3)

    assert share(0) == pytest.approx(1 / 1001, rel=1e-2)
    assert share(100) == pytest.approx(1 / (1 + 1000 / 13), rel=1e-3)
    assert share(10**6) == pytest.approx(1 / 6, rel=1e-4)


def test_cosfaces_least_scale_is_where_a_perfect_embedding_has_that_probability():
    """Eq. 6: the target's cosine is 1, and the C directions of a simplex have a cosine of −1/(C − 1)."""
    classes, probability = 10, 0.9
    s = least_scale(classes, probability)
    others = (classes - 1) * np.exp(-s / (classes - 1))
    assert np.exp(s) / (np.exp(s) + others) == pytest.approx(probability)


@pytest.mark.parametrize("classes", [2, 10, 100_000])
def test_sphereface2_begins_with_the_bias_of_least_loss(classes):
    margin = SphereFace2(scale=5.0)
    with jax.enable_x64():
        positive, negative = float(logit(margin, 0.0)), float(margin.other(jnp.zeros((1, 1)))[0, 0])

    def loss(b):
        return 0.7 * np.logaddexp(0, -positive - b) + 0.3 * (classes - 1) * np.logaddexp(0, negative + b)

    b = margin.first_bias(classes)
    assert loss(b) < min(loss(b - 1e-2), loss(b + 1e-2))


EXTREMES = ["aligned", "opposite", "orthogonal", "zero", "past the last angle", "a multiple of π/m"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    tiers(
        itertools.product([*MARGINS, "adaface"], (jnp.float32, jnp.bfloat16)),
        first=lambda name, dtype: dtype == jnp.float32 and not name.startswith(("l_softmax_", "arcface_", "combined_")),
    ),
)
def test_nothing_is_infinite_wherever_an_embedding_points(name, dtype):
    margin = AdaFace() if name == "adaface" else MARGINS[name][0]
    x, w, label = _extremes(dtype)

    def f(x, w):
        return jnp.sum(linear_cross_entropy(x, w, label, margin=margin).value)

    run = jax.jit(jax.value_and_grad(f, (0, 1)))
    for scale in (1.0, 1e-6, 1e3):
        value, slopes = run(scale * x, w)
        assert np.isfinite(float(value))
        assert all(np.isfinite(np.asarray(slope, np.float32)).all() for slope in slopes)


def _inputs(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (6, 5)), jax.random.normal(keys[1], (7, 5))
    return x.astype(dtype), w.astype(dtype), jax.random.randint(keys[2], (6,), 0, 7)


def _extremes(dtype):
    """Six embeddings, one for each of EXTREMES, of classes 0 … 5."""
    w = np.eye(7, 5)
    w[5:] = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    angle = [0.0, np.pi, np.pi / 2, 0.0, np.pi - M + 0.1, np.pi / 4]
    x = np.zeros((6, 5))
    for i, theta in enumerate(angle):
        other = np.eye(5)[(i + 1) % 5] if i < 5 else np.asarray([1, -1, 0, 0, 0]) / np.sqrt(2)
        x[i] = np.cos(theta) * w[i] / np.linalg.norm(w[i]) + np.sin(theta) * other
    x[EXTREMES.index("zero")] = 0.0
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.arange(6)


PUBLIC = {
    "l_softmax": LSoftmax(m=3, **PURE),
    "a_softmax": ASoftmax(m=4, **PURE),
    "cosface": CosFace(scale=16.0, m=0.35),
    "arcface": ArcFace(scale=16.0, m=0.5),
    "subcentre": ArcFace(scale=16.0, m=0.5),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_logits_loss_and_gradients_are_those_of_a_public_implementation(name):
    """PyTorch Metric Learning's (benchmarks/metric_learning_arrays.py), one embedding being past the last angle."""
    margin = PUBLIC[name]
    with np.load(Path(__file__).with_name("metric_learning_arrays.npz")) as file:
        arrays = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    with jax.enable_x64():
        h, w, label = (jnp.asarray(arrays[key]) for key in ("input/h", "input/w", "label"))
        loss = lambda h, w: jnp.mean(linear_cross_entropy(h, w, label, margin=margin, step=10**12).value)  # noqa: E731
        value, (dh, dw) = jax.jit(jax.value_and_grad(loss, (0, 1)))(h, w)
        nobody = jnp.zeros(label.shape, h.dtype)
        others = logits_of(margin, scaled(margin, h), w, nobody)
        own, _ = logit_of_target(margin, h, w[label], label, 10**12)
    logits = np.array(others)
    if w.ndim == 2:
        x, row = arrays["input/h"][0], arrays["input/w"][arrays["label"][0]]
        assert x @ row / np.linalg.norm(x) / np.linalg.norm(row) < np.cos(np.pi - 0.5)
    logits[np.arange(len(label)), label] = own
    for found, key in ((logits, "logits"), (value, "loss"), (dh, "gradient/h"), (dw, "gradient/w")):
        np.testing.assert_allclose(found, arrays[key], rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ArcFace(m=4.0),
        lambda: CosFace(m=-1.0),
        lambda: CombinedMargin(m1=-1.0),
        lambda: AdaFace(h=0.0),
        lambda: MagFace(low=0.0),
        lambda: MagFace(low=5.0, high=5.0),
        lambda: SphereFace2(balance=1.0),
        lambda: SphereFace2(warmup=10),
    ],
)
def test_what_is_no_margin_is_refused(wrong):
    with pytest.raises(ValueError, match=" must be "):
        wrong()
