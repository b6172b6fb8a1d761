"""Losses that compare examples: against loops, differences and PyTorch codes in float64; their state and devices."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from losses.fused_head import HeadSGD
from losses.identification import Identification
from losses.margin_softmax import CosFace, Softmax
from losses.metric import Contrastive, InfoNCE, NPair, SupervisedContrastive, Triplet
from losses.metric_learning import CenterLoss, MetricLearning, moved_centres
from models.denoiser import Denoiser
from models.embedder import Embedder, EmbeddingNet
from models.mlp import MLP
from training.config import decode, encode
from training.mesh import Mesh

TORCH = np.load(Path(__file__).parent / "metric_learning_arrays.npz")
STEP = jnp.zeros((), jnp.int32)
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
    "contrastive": (Contrastive(margin=1.2), lambda h, y: contrastive(h, y, 1.2)),
    "contrastive_raw": (Contrastive(margin=2.0, unit=False), lambda h, y: contrastive(h, y, 2.0, unit=False)),
    "all": (Triplet(mining="all", margin=0.7), lambda h, y: triplet(h, y, "all", 0.7)),
    "all_active": (Triplet(mining="all", active=True), lambda h, y: triplet(h, y, "all", active=True)),
    "all_soft": (Triplet(mining="all", soft=True), lambda h, y: triplet(h, y, "all", soft=True)),
    "hard": (Triplet(mining="hard"), lambda h, y: triplet(h, y, "hard")),
    "hard_active": (
        Triplet(mining="hard", margin=0.0, active=True),
        lambda h, y: triplet(h, y, "hard", 0.0, active=True),
    ),
    "hard_soft_raw": (Triplet(mining="hard", soft=True, **RAW), lambda h, y: triplet(h, y, "hard", soft=True, **RAW)),
    "semi_hard": (Triplet(mining="semi_hard", margin=0.5), lambda h, y: triplet(h, y, "semi_hard", 0.5)),
    "semi_hard_raw": (Triplet(mining="semi_hard", **RAW), lambda h, y: triplet(h, y, "semi_hard", **RAW)),
    "n_pair": (NPair(), n_pair),
    "info_nce": (InfoNCE(temperature=0.3), lambda h, y: info_nce(h, y, 0.3)),
    "supervised": (SupervisedContrastive(), supervised),
    "supervised_inside": (SupervisedContrastive(inside=True), lambda h, y: supervised(h, y, inside=True)),
}
LABELS = {
    "three_two_and_one": [0, 1, 0, 2, 1, 0, 3],
    "twos": [4, 4, 0, 0, 7, 7],
    "one_class": [1, 1, 1, 1],
    "all_different": [3, 1, 0, 2],
    "alone": [0],
}


def drawn(label, size=3, seed=0):
    return np.random.default_rng(seed).standard_normal((len(label), size))


def labels(values):
    return jnp.asarray(values, jnp.int32)


def loss_and_gradient(loss, h, label):
    return jax.value_and_grad(lambda h: jnp.mean(loss(h, label)))(h)


def in_float64(loss, h, label):
    with jax.enable_x64():
        value, gradient = loss_and_gradient(loss, jnp.asarray(h, jnp.float64), labels(label))
        return np.asarray(value), np.asarray(gradient)


@pytest.mark.parametrize("which", LABELS)
@pytest.mark.parametrize("name", LOSSES)
def test_mean_and_gradient_are_those_of_the_papers_formula_by_loops_and_differences(name, which):
    (loss, formula), label = LOSSES[name], LABELS[which]
    h = drawn(label)
    value, gradient = in_float64(loss, h, label)
    np.testing.assert_allclose(value, formula(h, label), rtol=1e-10, atol=1e-12)
    difference = np.zeros_like(h)
    for at in np.ndindex(h.shape):
        step = np.zeros_like(h)
        step[at] = 1e-6
        difference[at] = (formula(h + step, label) - formula(h - step, label)) / 2e-6
    np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-8)


def test_the_drawn_batches_hold_every_case_of_mining():
    """What the test above compares is not the same cost throughout."""
    label, u = LABELS["three_two_and_one"], directions(drawn(LABELS["three_two_and_one"]))
    far = ((u[:, None] - u[None]) ** 2).sum(-1)
    rows = [others(label, i) for i in range(len(label))]
    fallback = [max(far[i, rest]) < far[i, p] for i, (mates, rest) in enumerate(rows) for p in mates]
    hinge = [far[i, p] - far[i, n] + 0.2 > 0 for i, (mates, rest) in enumerate(rows) for p in mates for n in rest]
    assert 0 < sum(fallback) < len(fallback)
    assert 0 < sum(hinge) < len(hinge)


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
    value, gradient = in_float64(TORCH_CASES[name], case["input/h"], case["label"])
    np.testing.assert_allclose(value, case["loss"], rtol=1e-9)
    np.testing.assert_allclose(gradient, case["gradient/h"], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_and_halves_are_near_float64(name):
    loss, label = LOSSES[name][0], labels([0, 1, 0, 2, 1, 0, 3, 2])
    h = jnp.asarray(drawn(label, 16)).astype(jnp.bfloat16)
    value, gradient = loss_and_gradient(loss, h.astype(jnp.float32), label)
    expected = in_float64(loss, np.asarray(h, np.float64), label)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-6)
    assert loss(h, label).dtype == jnp.float32
    np.testing.assert_array_equal(loss(h, label), loss(h.astype(jnp.float32), label))


AWKWARD = {
    "copies": [[1.0, 2.0, 3.0]] * 2 + [[-1.0, 0.3, 0.1]] * 3 + [[1.0, 2.0, 3.0]],
    "all_the_same": [[0.3, 0.1, 0.7]] * 6,
    "zeros": [[0.0, 0.0, 0.0]] * 6,
    "a_zero_among_others": [*drawn(range(5)).tolist(), [0.0, 0.0, 0.0]],
    "opposite": [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]] * 3,
    "tiny": (1e-18 * drawn(range(6))).tolist(),
    "large": (1e4 * drawn(range(6))).tolist(),
}


@pytest.mark.parametrize("label", [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_where_embeddings_coincide_or_vanish(name, label):
    f = jax.jit(lambda h: loss_and_gradient(LOSSES[name][0], h, labels(label)))
    for what, h in AWKWARD.items():
        value, gradient = f(jnp.asarray(h, jnp.float32))
        assert np.isfinite(value), what
        assert np.isfinite(gradient).all(), what


def test_copies_of_different_classes_cost_half_the_squared_margin_and_have_no_direction_to_part_in():
    rng = np.random.default_rng(1)
    one = jnp.asarray(rng.standard_normal(7), jnp.float32)
    h = jnp.stack([one, one])
    value, gradient = loss_and_gradient(Contrastive(margin=1.5), h, labels([0, 1]))
    np.testing.assert_allclose(value, 0.5 * 1.5**2)
    np.testing.assert_array_equal(gradient, 0.0)


def test_near_copies_are_pushed_apart_with_the_margins_force():
    """½(m − r)² has the slope m − r in either point, however small r is; of directions, over ‖h‖."""
    with jax.enable_x64():
        for r in (1e-2, 1e-4, 1e-6):
            h = jnp.asarray([[2.0, 0.0], [2.0 * np.cos(r), 2.0 * np.sin(r)]])
            _, gradient = loss_and_gradient(Contrastive(margin=1.5), h, labels([0, 1]))
            np.testing.assert_allclose(gradient[:, 1], [0.75, -0.75 * np.cos(r)], rtol=2e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_with_nothing_to_compare_gives_zeros(name):
    loss = LOSSES[name][0]
    cases = [[0]]
    if not isinstance(loss, Contrastive):
        cases.append([0, 1, 2, 3])  # no positive
        if not isinstance(loss, SupervisedContrastive):
            cases.append([2, 2, 2])  # no negative
    for label in cases:
        h = jnp.asarray(drawn(label), jnp.float32)
        found = loss.compare(h, labels(label))
        np.testing.assert_array_equal(found.value, 0.0)
        np.testing.assert_array_equal(loss_and_gradient(loss, h, labels(label))[1], 0.0)
        assert np.isfinite(found.active)


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_matter_does_not_change_it(name):
    """The order of examples, the names of classes, a rotation of all; and lengths, where directions are compared."""
    loss, rng = LOSSES[name][0], np.random.default_rng(3)
    label = np.asarray([0, 1, 2, 1, 2, 0, 3])  # of two at most: in N-pair the next one is then the only one
    h, order = drawn(label, 4), rng.permutation(len(label))
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    with jax.enable_x64():
        value = np.asarray(loss(jnp.asarray(h), labels(label)))
        np.testing.assert_allclose(loss(jnp.asarray(h[order]), labels(label[order])), value[order], rtol=1e-9)
        np.testing.assert_allclose(loss(jnp.asarray(h), labels(9 - 2 * label)), value, rtol=1e-12)
        np.testing.assert_allclose(loss(jnp.asarray(h @ turn), labels(label)), value, rtol=1e-8, atol=1e-12)
        longer = np.asarray(loss(jnp.asarray(h * rng.uniform(0.1, 9.0, (len(h), 1))), labels(label)))
    lengths_count = isinstance(loss, NPair) or not getattr(loss, "unit", True)
    assert np.allclose(longer, value, rtol=1e-8, atol=1e-12) != lengths_count


def test_mining_orders_the_triplet_losses():
    label = labels([0, 0, 0, 1, 1, 1, 2, 2, 2])
    for seed in range(20):
        h = jnp.asarray(drawn(label, 4, seed), jnp.float32)
        of = {mining: Triplet(mining=mining)(h, label) for mining in ("all", "semi_hard", "hard")}
        active = Triplet(mining="all", active=True)(h, label).mean()
        assert (np.asarray(of["hard"]) >= np.asarray(of["semi_hard"]) - 1e-6).all()  # of every anchor
        assert (np.asarray(of["hard"]) >= np.asarray(of["all"]) - 1e-6).all()
        assert of["hard"].mean() >= active - 1e-6 >= of["all"].mean() - 2e-6
    # Where every negative is farther than every positive, semi-hard negatives are the hardest.
    centres = np.repeat(np.eye(3), 3, axis=0)
    h = jnp.asarray(centres + 0.05 * drawn(label), jnp.float32)
    apart = {mining: Triplet(mining=mining, margin=2.0)(h, label).mean() for mining in ("all", "semi_hard", "hard")}
    assert apart["all"] < apart["semi_hard"] < apart["hard"]


def test_semi_hard_negatives_cost_the_margin_at_most_where_there_are_any():
    label = labels([0, 0, 1, 1])
    angles = jnp.asarray([0.0, 0.5, 0.4, 2.0])  # for (0, 1) example 2 is nearer than the positive, 3 is beyond
    h = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    squared = lambda t: 2.0 - 2.0 * np.cos(t)  # noqa: E731
    gap = {"semi_hard": squared(0.5) - squared(2.0), "hard": squared(0.5) - squared(0.4)}
    for mining, expected in gap.items():
        # One of four anchors, each with one pair: its value is its cost.
        np.testing.assert_allclose(Triplet(mining=mining, margin=3.5)(h, label)[0], expected + 3.5, rtol=1e-5)


def test_inside_the_logarithm_is_never_above_outside():
    """Jensen's inequality, 2004.11362 §3.2.2; of one positive each they are one, and InfoNCE too."""
    h = jnp.asarray(drawn(range(12), 5), jnp.float32)
    label = labels([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    inside, outside = (SupervisedContrastive(inside=inside)(h, label) for inside in (True, False))
    assert (np.asarray(inside) < np.asarray(outside)).all()
    twos = labels([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    same = [loss(h, twos) for loss in (SupervisedContrastive(inside=True), SupervisedContrastive(), InfoNCE())]
    np.testing.assert_allclose(same[0], same[1], rtol=1e-5)
    np.testing.assert_allclose(same[2], same[1], rtol=1e-5)


def test_the_active_part_is_counted():
    label = LABELS["three_two_and_one"]
    u = directions(drawn(label))
    far = ((u[:, None] - u[None]) ** 2).sum(-1)
    hinges = [
        far[a, p] - far[a, n] + 0.2 > 0
        for a in range(len(label))
        for p in others(label, a)[0]
        for n in others(label, a)[1]
    ]
    acting = [label[i] == label[j] or far[i, j] < 1.0 for i in range(len(label)) for j in range(i)]
    h = jnp.asarray(drawn(label), jnp.float32)
    for active in (False, True):
        found = Triplet(mining="all", active=active).compare(h, labels(label))
        assert float(found.active) == pytest.approx(np.mean(hinges))
    assert float(Contrastive().compare(h, labels(label)).active) == pytest.approx(np.mean(acting))
    for loss in (NPair(), InfoNCE(), SupervisedContrastive()):
        assert float(loss.compare(h, labels(label)).active) == pytest.approx(5 / 7)


@pytest.mark.parametrize("name", LOSSES)
def test_descent_on_free_embeddings_brings_classes_together(name):
    label = labels([0, 1, 2, 3] * 3)
    h = jnp.asarray(drawn(label, 4, seed=5), jnp.float32)
    mates = np.asarray(label[:, None] == label[None, :]) & ~np.eye(12, dtype=bool)

    def ordered(h):
        """The part of examples to which all of their class are nearer, by angle, than any other."""
        cos = directions(np.asarray(h)) @ directions(np.asarray(h)).T
        least = np.where(mates, cos, np.inf).min(1)
        return np.mean(least > np.where(mates | np.eye(12, dtype=bool), -np.inf, cos).max(1))

    @jax.jit
    def descend(h):
        slope = jax.grad(lambda h: jnp.mean(LOSSES[name][0](h, label)))
        return jax.lax.fori_loop(0, 500, lambda _, h: h - 0.5 * slope(h), h)

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
        (lambda: MetricLearning(weight=-1.0), "weight=-1.0 must be at least 0"),
        (lambda: CenterLoss(rate=0.0), r"rate=0.0 in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# Within training.


class Net(EmbeddingNet):
    """A layer and batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(self.features, name="layer")(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(h)


class Counting(Embedder):
    calls = 0

    def train_embed(self, variables, x, key):
        Counting.calls += 1
        return super().train_embed(variables, x, key)


CLASSES = 6
X = drawn(range(16), 5, seed=11).astype(np.float32)
BATCH = {"x": jnp.asarray(X), "label": labels(np.arange(16) // 3)}
IDENTIFICATION = Identification(margin=CosFace(scale=8.0))


def embedder(cls=Embedder, **settings):
    return cls(net=Net(features=4), classes=CLASSES, **settings)


def started(model):
    """Variables with a head, centres and statistics that are not at their start."""
    return jax.tree.map(lambda leaf: leaf + 0.1, model.init(jax.random.key(1), BATCH))


def test_metric_learning_adds_the_two_signals_of_one_embedding():
    model = embedder(Counting)
    variables, key = started(model), jax.random.key(2)
    alone = IDENTIFICATION(model, variables, key, BATCH, STEP)
    h, state = model.train_embed(variables, BATCH["x"], key)
    Counting.calls = 0
    metric = SupervisedContrastive()
    found = MetricLearning(metric=metric, weight=0.25, identification=IDENTIFICATION)(
        model, variables, key, BATCH, STEP
    )
    assert Counting.calls == 1
    compared = metric.compare(h, BATCH["label"])
    np.testing.assert_allclose(found.value, alone.value + 0.25 * compared.value, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["metric_loss"], compared.value, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["active"], compared.active)
    np.testing.assert_allclose(found.metrics["identification_loss"], alone.value, rtol=1e-6)
    assert set(alone.metrics) < set(found.metrics)
    jax.tree.map(np.testing.assert_array_equal, found.state, state)


def test_metric_learning_alone_is_the_metric_loss_with_the_networks_new_state():
    model = embedder()
    variables = started(model)
    found = MetricLearning(metric=NPair())(model, variables, jax.random.key(2), BATCH, STEP)
    h, state = model.train_embed(variables, BATCH["x"], jax.random.key(2))
    np.testing.assert_allclose(found.value, NPair()(h, BATCH["label"]), rtol=1e-6)
    assert set(found.metrics) == {"metric_loss", "active"}
    jax.tree.map(np.testing.assert_array_equal, found.state, state)
    before, after = (jax.tree.leaves(s["net"]) for s in (variables["state"], found.state))
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("center", [False, True])
def test_the_heads_own_step_and_the_statistics_are_both_in_the_new_state(center):
    model = embedder(head_in_state=True, class_means=True)
    variables, key = started(model), jax.random.key(2)
    identification = Identification(margin=CosFace(scale=8.0), update=HeadSGD(learning_rate=0.1))
    alone = identification(model, variables, key, BATCH, STEP)
    loss = (CenterLoss if center else MetricLearning)(identification=identification)
    found = loss(model, variables, key, BATCH, STEP)
    assert set(found.state) == set(variables["state"])
    for name in ("net", "head", "momentum"):
        jax.tree.map(np.testing.assert_array_equal, found.state[name], alone.state[name])
        for a, b in zip(jax.tree.leaves(found.state[name]), jax.tree.leaves(variables["state"][name]), strict=True):
            assert (np.asarray(a) != np.asarray(b)).any(), name
    moved = (np.asarray(found.state["class_means"]) != np.asarray(variables["state"]["class_means"])).any(axis=1)
    np.testing.assert_array_equal(moved, center)  # all six classes are in the batch


def test_centres_move_as_computed_by_hand():
    centres = jnp.asarray([[1.0, 1.0], [0.0, 0.0], [4.0, -2.0]])
    h = jnp.asarray([[3.0, 1.0], [4.0, 0.0], [2.0, 3.0]])
    moved = moved_centres(centres, h, labels([0, 2, 0]), 0.5)
    # class 0: ((1 − 3) + (1 − 2), (1 − 1) + (1 − 3))/(1 + 2) = (−1, −2/3); class 2: (0, −2)/2 = (0, −1)
    np.testing.assert_allclose(moved, [[1.5, 1.0 + 1 / 3], [0.0, 0.0], [4.0, -1.5]], rtol=1e-6)


def test_centres_come_to_rest_at_their_classes_means():
    label = labels([0, 0, 0, 1, 1])
    h = jnp.asarray(drawn(label), jnp.float32)
    centres = jax.lax.fori_loop(0, 60, lambda _, c: moved_centres(c, h, label, 0.5), jnp.zeros((3, 3)))
    np.testing.assert_allclose(centres, [h[:3].mean(0), h[3:].mean(0), [0.0, 0.0, 0.0]], atol=1e-5)


def test_center_loss_pulls_embeddings_to_their_centres_and_lets_no_gradient_into_them():
    model = embedder(class_means=True)
    variables, key = started(model), jax.random.key(2)
    means = jnp.asarray(drawn(range(CLASSES), 4, seed=8), jnp.float32)
    variables = {**variables, "state": {**variables["state"], "class_means": means}}
    loss = CenterLoss(identification=IDENTIFICATION, weight=0.2, rate=0.3)
    h, _ = model.train_embed(variables, BATCH["x"], key)
    alone, found = (one(model, variables, key, BATCH, STEP) for one in (IDENTIFICATION, loss))
    pull = h - means[BATCH["label"]]
    np.testing.assert_allclose(found.value, alone.value + 0.1 * jnp.sum(pull**2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["center_loss"], 0.5 * jnp.sum(pull**2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        found.state["class_means"], moved_centres(means, h, BATCH["label"], 0.3), rtol=1e-5, atol=1e-6
    )

    def slopes(one):
        return jax.grad(lambda v: jnp.mean(one(model, v, key, BATCH, STEP).value))(variables)

    with_centres, without = slopes(loss), slopes(IDENTIFICATION)
    np.testing.assert_array_equal(with_centres["state"]["class_means"], 0.0)
    # The gradient in the norm's bias is the sum of those in h, so the centres' part of it is λ·mean(h − c).
    part = with_centres["params"]["net"]["norm"]["bias"] - without["params"]["net"]["norm"]["bias"]
    np.testing.assert_allclose(part, 0.2 * jnp.mean(pull, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "loss", [MetricLearning(identification=IDENTIFICATION), CenterLoss(identification=IDENTIFICATION)]
)
def test_wrong_models_and_data_are_refused(loss):
    model, key = embedder(), jax.random.key(2)
    variables = started(model)
    with pytest.raises(TypeError, match="trains an Embedder, got Denoiser"):
        loss(Denoiser(net=MLP()), variables, key, BATCH, STEP)
    with pytest.raises(ValueError, match="trained on labels, and this data has none"):
        loss(model, variables, key, {"x": BATCH["x"]}, STEP)
    if isinstance(loss, CenterLoss):
        with pytest.raises(ValueError, match="set class_means=True"):
            loss(model, variables, key, BATCH, STEP)


SPREAD = {
    "all": MetricLearning(metric=Triplet(mining="all"), identification=IDENTIFICATION),
    "semi_hard": MetricLearning(metric=Triplet(mining="semi_hard")),
    "n_pair": MetricLearning(metric=NPair()),
    "supervised": MetricLearning(metric=SupervisedContrastive(), identification=Identification(margin=Softmax())),
    "contrastive": MetricLearning(metric=Contrastive()),
    "center": CenterLoss(identification=IDENTIFICATION),
}


@pytest.mark.parametrize("name", SPREAD)
def test_one_device_equals_eight(name):
    model, loss = embedder(class_means=True), SPREAD[name]
    variables, mesh = started(model), Mesh().build()
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))

    def step(variables, batch):
        def objective(params):
            found = loss(model, {**variables, "params": params}, jax.random.key(2), batch, STEP)
            return jnp.mean(found.value), found

        (_, found), slope = jax.value_and_grad(objective, has_aux=True)(variables["params"])
        return found.value, dict(found.metrics), found.state, slope

    one = jax.jit(step)(variables, BATCH)
    eight = jax.jit(step, in_shardings=(whole, split), out_shardings=(split, None, whole, whole))(variables, BATCH)
    assert len(eight[0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, eight)


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
def test_no_triplet_tensor_is_held_and_anchors_stay_on_their_devices(mining):
    """Of a batch of 64 on eight devices the largest array in the program, forwards and back, is 64×64."""
    mesh, size = Mesh().build(), 64
    split = NamedSharding(mesh, PartitionSpec("data"))
    f = jax.jit(lambda h, y: loss_and_gradient(Triplet(mining=mining), h, y), in_shardings=(split, split))
    program = f.lower(jnp.zeros((size, 4)), jnp.zeros(size, jnp.int32)).compile().as_text()
    shapes = {tuple(int(n) for n in found.split(",")) for found in arrays(program)}
    assert max(int(np.prod(shape)) for shape in shapes) <= size * size
    assert (size // 8, size) in shapes


def arrays(program):
    return re.findall(r"(?:f32|pred|s32)\[([\d,]+)\]", program)


def test_metric_losses_can_be_configured():
    for loss in SPREAD.values():
        assert decode(encode(loss)) == loss
