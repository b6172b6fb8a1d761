"""Losses that compare examples: against loops, differences and PyTorch codes in float64; what they hold."""

import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from losses.metric import Contrastive, InfoNCE, NPair, SupervisedContrastive, Triplet, distances, log_sum
from training.mesh import Mesh

TORCH = np.load(Path(__file__).parent / "metric_learning_arrays.npz")
SEED = 1  # of a batch in which mining meets every case
RAW = {"unit": False, "squared": False}


# The papers' formulas, one pair or triplet after the other.


def directions(h):
    return h / np.linalg.norm(h, axis=1, keepdims=True)


def others(label, i):
    mates = [j for j in range(len(label)) if j != i and label[j] == label[i]]
    return mates, [j for j in range(len(label)) if label[j] != label[i]]


def mean(costs):
    return float(np.mean(costs)) if len(costs) else 0.0


def contrastive(h, label, margin=1.0, unit=True):
    u = directions(h) if unit else h
    costs = []
    for i in range(len(h)):
        for j in range(i):
            r = np.linalg.norm(u[i] - u[j])
            costs.append(0.5 * r**2 if label[i] == label[j] else 0.5 * max(0.0, margin - r) ** 2)
    return mean(costs)


def triplet(h, label, mining, margin=0.2, soft=False, active=False, squared=True, unit=True):
    u = directions(h) if unit else h

    def far(i, j):
        return np.linalg.norm(u[i] - u[j]) ** (2 if squared else 1)

    def cost(a, p, n):
        gap = far(a, p) - far(a, n)
        return np.log1p(np.exp(gap)) if soft else max(0.0, gap + margin)

    costs = []
    for a in range(len(h)):
        mates, rest = others(label, a)
        if not mates or not rest:
            continue
        if mining == "all":
            costs += [cost(a, p, n) for p in mates for n in rest]
        elif mining == "hard":
            costs.append(max(cost(a, p, n) for p in mates for n in rest))
        else:
            for p in mates:
                beyond = [n for n in rest if far(a, n) > far(a, p)]
                chosen = min(beyond, key=lambda n: far(a, n)) if beyond else max(rest, key=lambda n: far(a, n))
                costs.append(cost(a, p, chosen))
    return mean([c for c in costs if c > 0.0] if active else costs)


def n_pair(h, label):
    costs = []
    for i in range(len(h)):
        mates, rest = others(label, i)
        if mates:
            p = next(j % len(h) for j in range(i + 1, i + len(h)) if j % len(h) in mates)
            costs.append(np.log(1.0 + sum(np.exp(h[i] @ h[n] - h[i] @ h[p]) for n in rest)))
    return mean(costs)


def info_nce(h, label, temperature=0.1):
    u, costs = directions(h), []
    for i in range(len(h)):
        mates, rest = others(label, i)
        for p in mates:
            e = np.exp(u[i] @ u[p] / temperature)
            costs.append(-np.log(e / (e + sum(np.exp(u[i] @ u[n] / temperature) for n in rest))))
    return mean(costs)


def supervised(h, label, temperature=0.1, inside=False):
    u, costs = directions(h), []
    for i in range(len(h)):
        mates, rest = others(label, i)
        if mates:
            total = sum(np.exp(u[i] @ u[k] / temperature) for k in mates + rest)
            parts = [np.exp(u[i] @ u[p] / temperature) / total for p in mates]
            costs.append(-np.log(np.mean(parts)) if inside else -np.mean(np.log(parts)))
    return mean(costs)


LOSSES = {
    "contrastive": (Contrastive(), contrastive),
    "contrastive_raw": (Contrastive(margin=2.0, unit=False), lambda h, y: contrastive(h, y, 2.0, unit=False)),
    "all": (Triplet(mining="all"), lambda h, y: triplet(h, y, "all")),
    "all_active": (Triplet(mining="all", active=True), lambda h, y: triplet(h, y, "all", active=True)),
    "all_soft": (Triplet(mining="all", soft=True), lambda h, y: triplet(h, y, "all", soft=True)),
    "hard": (Triplet(mining="hard"), lambda h, y: triplet(h, y, "hard")),
    "hard_active": (
        Triplet(mining="hard", margin=0.0, active=True),
        lambda h, y: triplet(h, y, "hard", 0.0, active=True),
    ),
    "hard_soft_raw": (Triplet(mining="hard", soft=True, **RAW), lambda h, y: triplet(h, y, "hard", soft=True, **RAW)),
    "semi_hard": (Triplet(mining="semi_hard"), lambda h, y: triplet(h, y, "semi_hard")),
    "semi_hard_raw": (Triplet(mining="semi_hard", **RAW), lambda h, y: triplet(h, y, "semi_hard", **RAW)),
    "n_pair": (NPair(), n_pair),
    "info_nce": (InfoNCE(), info_nce),
    "supervised": (SupervisedContrastive(), supervised),
    "supervised_inside": (SupervisedContrastive(inside=True), lambda h, y: supervised(h, y, inside=True)),
}
LABELS = {  # of one length, so that each loss is compiled once
    "three_two_and_one": [0, 1, 0, 2, 1, 0],
    "twos": [4, 4, 0, 7, 0, 7],
    "one_class": [1, 1, 1, 1, 1, 1],
    "all_different": [3, 1, 0, 2, 9, 5],
}


def drawn(label, size=3, seed=0):
    return np.random.default_rng(seed).standard_normal((len(label), size))


def labels(values):
    return jnp.asarray(values, jnp.int32)


@cache
def computed(loss):
    """The mean, its gradient, and what the comparison gives, in one program."""

    def both(h, label):
        found = loss.compare(h, label)
        return jnp.mean(found.value), found

    return jax.jit(lambda h, label: jax.value_and_grad(lambda h: both(h, label), has_aux=True)(h))


def in_float64(loss, h, label):
    with jax.enable_x64():
        (value, found), gradient = computed(loss)(jnp.asarray(h, jnp.float64), labels(label))
        return value, gradient, found


def in_float32(loss, h, label):
    (value, found), gradient = computed(loss)(jnp.asarray(h, jnp.float32), labels(label))
    return value, gradient, found


def values(loss, h, label):
    return np.asarray(in_float64(loss, h, label)[2].value)


@pytest.mark.parametrize("which", LABELS)
@pytest.mark.parametrize("name", LOSSES)
def test_mean_and_gradient_are_those_of_the_papers_formula_by_loops_and_differences(name, which):
    (loss, formula), label = LOSSES[name], LABELS[which]
    h = drawn(label, seed=SEED)
    value, gradient, _ = in_float64(loss, h, label)
    np.testing.assert_allclose(value, formula(h, label), rtol=1e-10, atol=1e-12)
    difference = np.zeros_like(h)
    for at in np.ndindex(h.shape):
        step = np.zeros_like(h)
        step[at] = 1e-6
        difference[at] = (formula(h + step, label) - formula(h - step, label)) / 2e-6
    np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-8)


def test_the_drawn_batches_hold_every_case_of_mining():
    """What the test above compares is not the same cost throughout."""
    label = LABELS["three_two_and_one"]
    u = directions(drawn(label, seed=SEED))
    far = ((u[:, None] - u[None]) ** 2).sum(-1)
    met = {"all": set(), "semi_hard": set()}
    for i in range(len(label)):
        mates, rest = others(label, i)
        for p in mates:
            ahead = far[i, rest] - far[i, p]
            met["all"] |= set(ahead < 0.2)
            met["semi_hard"].add("none" if max(ahead) < 0 else "within" if min(ahead[ahead > 0]) < 0.2 else "behind")
    assert met == {"all": {True, False}, "semi_hard": {"none", "within", "behind"}}


TORCH_CASES = {
    "contrastive": Contrastive(margin=float(TORCH["margin"])),
    "triplet_all": Triplet(mining="all", margin=float(TORCH["margin"])),
    "triplet_active": Triplet(mining="all", margin=float(TORCH["margin"]), active=True),
    "triplet_soft": Triplet(mining="all", soft=True),
    "triplet_hard": Triplet(mining="hard", margin=float(TORCH["margin"]), **RAW),
    "info_nce": InfoNCE(temperature=float(TORCH["temperature"])),
    "supervised": SupervisedContrastive(temperature=float(TORCH["temperature"])),
    "n_pair_dots": NPair(),
    "n_pair": NPair(),
}


@pytest.mark.parametrize("name", TORCH_CASES)
def test_where_definitions_agree_the_numbers_are_those_of_pytorch_codes(name):
    case = {key: TORCH[f"{name}/{key}"] for key in ("input/h", "label", "loss", "gradient/h")}
    assert case["loss"] > 0.01
    value, gradient, _ = in_float64(TORCH_CASES[name], case["input/h"], case["label"])
    np.testing.assert_allclose(value, case["loss"], rtol=1e-9)
    np.testing.assert_allclose(gradient, case["gradient/h"], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_near_float64_and_halves_are_computed_in_it(name):
    loss, label = LOSSES[name][0], LABELS["three_two_and_one"]
    h = drawn(label, seed=SEED).astype(np.float32)
    value, gradient, found = in_float32(loss, h, label)
    expected = in_float64(loss, h, label)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-6)
    assert found.value.dtype == jnp.float32
    of_halves = jax.eval_shape(loss.compare, jnp.zeros((6, 3), jnp.bfloat16), labels(label))
    assert (of_halves.value.dtype, of_halves.active.dtype) == (jnp.float32, jnp.float32)


AWKWARD = {
    "copies": [[1.0, 2.0, 3.0]] * 2 + [[-1.0, 0.3, 0.1]] * 3 + [[1.0, 2.0, 3.0]],
    "all_the_same": [[0.3, 0.1, 0.7]] * 6,
    "zeros": [[0.0, 0.0, 0.0]] * 6,
    "a_zero_among_others": [*drawn(range(5)).tolist(), [0.0, 0.0, 0.0]],
    "opposite": [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]] * 3,
    "tiny": 1e-18 * drawn(range(6)),
    "large": 1e4 * drawn(range(6)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_where_embeddings_coincide_or_vanish(name):
    for label in ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]):
        for what, h in AWKWARD.items():
            value, gradient, _ = in_float32(LOSSES[name][0], h, label)
            assert np.isfinite(value), (what, label)
            assert np.isfinite(gradient).all(), (what, label)


def test_copies_of_different_classes_cost_half_the_squared_margin_and_have_no_direction_to_part_in():
    one = drawn([0], 7, seed=1)
    value, gradient, _ = in_float32(Contrastive(margin=1.5), np.concatenate([one, one]), [0, 1])
    np.testing.assert_allclose(value, 0.5 * 1.5**2)
    np.testing.assert_array_equal(gradient, 0.0)


def test_copies_are_at_distance_0_whatever_products_are_rounded_to():
    x = np.repeat(drawn(range(50), 37, seed=2).astype(np.float32), 2, axis=0)
    d, r = jax.jit(distances)(jnp.asarray(x))
    first = np.arange(0, 100, 2)
    assert (np.asarray(d) >= 0.0).all()
    assert np.asarray(d)[first, first + 1].max() > 0.0  # rounding is met
    np.testing.assert_array_equal(np.asarray(r)[first, first + 1], 0.0)
    exact = np.sqrt(((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1))
    np.testing.assert_allclose(r, exact, rtol=1e-5)


def test_a_sum_of_exponentials_neither_overflows_nor_fails_where_it_is_empty():
    s = jnp.asarray([[1000.0, 999.0, 5.0], [-1000.0, -1000.0, 5.0], [1.0, 2.0, 3.0]])
    mask = jnp.asarray([[True, True, False], [True, True, False], [False, False, False]])
    expected = [1000.0 + np.log1p(np.exp(-1.0)), -1000.0 + np.log(2.0), 0.0]
    np.testing.assert_allclose(log_sum(s, mask), expected, rtol=1e-6)
    part = np.exp(-1.0) / (1.0 + np.exp(-1.0))
    slope = jax.grad(lambda s: log_sum(s, mask).sum())(s)
    np.testing.assert_allclose(slope, [[1.0 - part, part, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], rtol=1e-5)


def test_near_copies_are_pushed_apart_with_the_margins_force():
    """½(m − r)² has the slope m − r at either point, however small r is; over ‖h‖, here 2."""
    for r in (1e-2, 1e-4, 1e-6):
        h = np.asarray([[2.0, 0.0], [2.0 * np.cos(r), 2.0 * np.sin(r)]])
        _, gradient, _ = in_float64(Contrastive(margin=1.5), h, [0, 1])
        np.testing.assert_allclose(gradient[:, 1], [0.75, -0.75], rtol=2e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_with_nothing_to_compare_gives_zeros(name):
    loss = LOSSES[name][0]
    cases = []
    if not isinstance(loss, Contrastive):
        cases.append([0, 1, 2, 3, 4, 5])  # no positive
        if not isinstance(loss, SupervisedContrastive):
            cases.append([2, 2, 2, 2, 2, 2])  # no negative
    if name in ("contrastive", "all", "hard", "n_pair", "info_nce", "supervised"):
        cases.append([0])
    for label in cases:
        _, gradient, found = in_float32(loss, drawn(label), label)
        np.testing.assert_array_equal(found.value, 0.0)
        np.testing.assert_array_equal(gradient, 0.0)
        assert np.isfinite(found.active)


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_matter_does_not_change_it(name):
    """The order of examples, the names of classes, a rotation of all; and lengths, where directions are compared."""
    loss, rng = LOSSES[name][0], np.random.default_rng(3)
    label = np.asarray([0, 1, 2, 1, 2, 0])  # of two: in N-pair the next one is then the only one
    h, order = drawn(label, seed=SEED), rng.permutation(len(label))
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    value = values(loss, h, label)
    assert (value > 0.0).any()
    np.testing.assert_allclose(values(loss, h[order], label[order]), value[order], rtol=1e-9)
    np.testing.assert_allclose(values(loss, h, 9 - 2 * label), value, rtol=1e-12)
    np.testing.assert_allclose(values(loss, h @ turn, label), value, rtol=1e-8, atol=1e-12)
    longer = values(loss, h * rng.uniform(0.1, 9.0, (len(h), 1)), label)
    lengths_count = isinstance(loss, NPair) or not getattr(loss, "unit", True)
    assert np.allclose(longer, value, rtol=1e-8, atol=1e-12) != lengths_count


def test_mining_orders_the_triplet_losses():
    label = [0, 0, 0, 1, 1, 1]
    hard, semi, every = (Triplet(mining=mining) for mining in ("hard", "semi_hard", "all"))
    for seed in range(20):
        h = drawn(label, seed=seed)
        active = values(Triplet(mining="all", active=True), h, label).mean()
        assert (values(hard, h, label) >= values(semi, h, label) - 1e-12).all()  # of every anchor
        assert (values(hard, h, label) >= values(every, h, label) - 1e-12).all()
        assert active >= values(every, h, label).mean() - 1e-12
    # Where every negative is farther than every positive, semi-hard negatives are the hardest.
    h = 1.0 + 0.4 * np.repeat(np.eye(3)[:2], 3, axis=0) + 0.02 * drawn(label)
    apart = [values(loss, h, label).mean() for loss in (every, semi, hard)]
    assert 0.0 < apart[0] < apart[1] < apart[2]


def test_semi_hard_mining_leaves_nearer_negatives_alone():
    """Of the anchor 0, example 1 is the positive, 2 is nearer, and 3 beyond: within the margin, then behind it."""
    label = [0, 0, 1, 2, 3, 4]
    for at in (0.55, 2.0):
        angles = np.asarray([0.0, 0.5, 0.4, at, 2.5, 3.0])
        positive, nearer, beyond = 2.0 - 2.0 * np.cos(angles[1:4])
        expected = {"semi_hard": max(0.0, positive - beyond + 0.2), "hard": positive - nearer + 0.2}
        h = np.stack([np.cos(angles), np.sin(angles), 0.0 * angles], axis=1)
        for mining, cost in expected.items():
            # Two of six examples are anchors, with one pair each: a value is three costs.
            np.testing.assert_allclose(values(Triplet(mining=mining), h, label)[0], 3.0 * cost, rtol=1e-9)


def test_inside_the_logarithm_is_never_above_outside():
    """Jensen's inequality, 2004.11362 §3.2.2; of one positive each they are one, and InfoNCE too."""
    h, threes, twos = drawn(range(6)), [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]
    inside, outside = SupervisedContrastive(inside=True), SupervisedContrastive()
    assert (values(inside, h, threes) < values(outside, h, threes)).all()
    for loss in (inside, InfoNCE()):
        np.testing.assert_allclose(values(loss, h, twos), values(outside, h, twos), rtol=1e-9)


def test_the_active_part_is_counted():
    label = LABELS["three_two_and_one"]
    h = drawn(label, seed=SEED)
    far = ((directions(h)[:, None] - directions(h)[None]) ** 2).sum(-1)
    rows = [others(label, i) for i in range(len(label))]
    hinges = [far[i, p] - far[i, n] + 0.2 > 0 for i, (mates, rest) in enumerate(rows) for p in mates for n in rest]
    acting = [label[i] == label[j] or far[i, j] < 1.0 for i in range(len(label)) for j in range(i)]
    expected = {Contrastive(): np.mean(acting), Triplet(): np.mean(hinges), Triplet(active=True): np.mean(hinges)}
    expected |= dict.fromkeys((NPair(), InfoNCE(), SupervisedContrastive()), 5 / 6)
    for loss, part in expected.items():
        assert float(in_float64(loss, h, label)[2].active) == pytest.approx(part)


# Margins that the random start violates throughout, for those that stop where they are met.
DESCENDING = {
    "contrastive": Contrastive(),
    "all": Triplet(mining="all", margin=0.5),
    "all_active": Triplet(mining="all", active=True, **RAW),
    "hard_soft_raw": Triplet(mining="hard", soft=True, **RAW),
    "semi_hard": Triplet(mining="semi_hard", margin=1.5),
    "n_pair": NPair(),
    "info_nce": InfoNCE(),
    "supervised": SupervisedContrastive(),
}


@pytest.mark.parametrize("name", DESCENDING)
def test_descent_on_free_embeddings_brings_classes_together(name):
    loss, label = DESCENDING[name], labels([0, 1, 2, 3] * 3)
    itself = np.eye(12, dtype=bool)
    mates = np.asarray(label[:, None] == label[None, :]) & ~itself

    def ordered(h):
        """The part of examples to which all of their class are nearer than any other."""
        h = np.asarray(h) if getattr(loss, "unit", True) is False else directions(np.asarray(h))
        far = ((h[:, None] - h[None]) ** 2).sum(-1)
        return np.mean(np.where(mates, far, -np.inf).max(1) < np.where(mates | itself, np.inf, far).min(1))

    @jax.jit
    def descend(h):
        slope = jax.grad(lambda h: jnp.mean(loss(h, label)))
        return jax.lax.fori_loop(0, 500, lambda _, h: h - 0.5 * slope(h), h)

    h = jnp.asarray(drawn(label, 4, seed=5), jnp.float32)
    assert ordered(h) < 0.5
    assert ordered(descend(h)) == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Contrastive(margin=0.0), "margin=0.0 must be above 0"),
        (lambda: Triplet(margin=-0.1), "margin=-0.1 must be at least 0"),
        (lambda: Triplet(soft=True, active=True), "with soft=True there are none"),
        (lambda: InfoNCE(temperature=0.0), "temperature=0.0 must be above 0"),
        (lambda: SupervisedContrastive(temperature=-1.0), "temperature=-1.0 must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
def test_no_triplet_tensor_is_held_and_anchors_stay_on_their_devices(mining):
    """Of a batch of 64 on eight devices the largest array in the program, forwards and back, is 64×64."""
    mesh, size = Mesh().build(), 64
    split = NamedSharding(mesh, PartitionSpec("data"))
    f = jax.jit(computed(Triplet(mining=mining)), in_shardings=(split, split))
    program = f.lower(jnp.zeros((size, 4)), jnp.zeros(size, jnp.int32)).compile().as_text()
    shapes = {tuple(int(n) for n in found.split(",")) for found in re.findall(r"(?:f32|pred|s32)\[([\d,]+)\]", program)}
    assert max(int(np.prod(shape)) for shape in shapes) <= size * size
    assert (size // 8, size) in shapes
