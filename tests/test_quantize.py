"""Quantizers: values by hand, gradients that go where they should, codes that stay alive, one device as eight."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import quantize
from models.bottlenecks import NormalPosterior, Plain
from models.codebook import EMA, VQ
from models.fsq import FSQ
from models.gumbel import Gumbel
from models.quantize import nearest, through
from models.residual_vq import ResidualVQ
from tests.conftest import tiers

QUANTIZERS = {
    "vq": VQ(size=7, width=3),
    "heads": VQ(size=7, width=3, heads=2, gradient="rotation"),
    "ema": EMA(size=7, width=3, restart=0.1),
    "kmeans": EMA(size=7, width=3, start="kmeans"),
    "residual": ResidualVQ(codebook=EMA(size=5, width=4), depth=3),
    "residual_vq": ResidualVQ(codebook=VQ(size=5, width=4), depth=2),
    "fsq": FSQ(levels=(4, 3, 5)),
    "gumbel": Gumbel(size=6, width=3, hard=True),
}
each = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS.keys())


def case(quantizer, size=4, places=(3, 2)):
    z = jax.random.normal(jax.random.key(1), (size, *places, quantizer.inputs))
    return jax.jit(quantizer.init)(jax.random.key(2), z), z


def near(a, b, tolerance=1e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("held", [2**20, 40, 1])  # all at once, in parts with one over, one code at a time
def test_the_nearest_code_is_brute_forces(held, monkeypatch):
    monkeypatch.setattr(quantize, "HELD", held)
    monkeypatch.setattr(quantize, "FEWEST", 1)
    z, codebook = (jax.random.normal(jax.random.key(i), (n, 5)) for i, n in enumerate((13, 10)))
    codebook = codebook.at[7].set(codebook[2])  # of equally near ones the first
    z = z.at[0].set(codebook[2])
    wanted = np.argmin(((np.asarray(z)[:, None] - np.asarray(codebook)[None]) ** 2).sum(-1), axis=1)
    found = jax.jit(lambda z, c: nearest(z, c))(z, codebook)  # a function of its own: jit knows nothing of HELD
    np.testing.assert_array_equal(found, wanted)
    assert found[0] == 2
    assert len(set(wanted.tolist())) > 4


def test_a_search_over_many_codes_holds_few_distances():
    z, codebook = jnp.zeros((4096, 8)), jnp.zeros((32_768, 8))
    memory = jax.jit(nearest).lower(z, codebook).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * 4 * quantize.HELD  # all distances are 128 times as many


@each
def test_what_is_read_is_the_code_to_the_last_bit(quantizer):
    variables, z = case(quantizer)
    found = jax.jit(lambda v, z: quantizer(v, z))(variables, z)
    read = jax.jit(quantizer.embed)(variables, found.indices)
    # Of residual codes the sum is in another order.
    near(found.z, read, 1e-6) if isinstance(quantizer, ResidualVQ) else np.testing.assert_array_equal(found.z, read)
    assert found.indices.shape == (4, 3, 2, quantizer.per_place)
    assert found.z.shape == (4, 3, 2, quantizer.outputs)
    assert int(found.indices.min()) >= 0
    assert int(found.indices.max()) < quantizer.codes
    assert len(np.unique(found.indices)) > 2
    for leaf, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(variables["state"]), strict=True):
        np.testing.assert_array_equal(leaf, other)  # nothing moves outside training


def test_values_by_hand():
    """One latent (1, 0) between the codes (0, 0) and (2, 1), β = ½."""
    table, z = jnp.asarray([[0.0, 0.0], [2.0, 1.0]]), jnp.asarray([[[1.0, 0.0]]])
    quantizer = VQ(size=2, width=2, beta=0.5)
    variables = {"params": {"codebook": table}, "state": {}}
    found = quantizer(variables, z)
    np.testing.assert_array_equal(found.indices, [[[0]]])  # at distance 1 against √2
    near(found.z, [[[0.0, 0.0]]])
    near(found.penalty, [0.5 * (1.0 + 0.5)])  # a mean over two numbers
    near(found.metrics["perplexity"], 1.0)
    near(found.metrics["usage"], 0.5)


def test_beta_is_on_the_encoders_term_and_only_there():
    quantizer = VQ(size=5, width=3, beta=0.25)
    variables, z = case(quantizer)

    def penalty(table, z, beta):
        chosen = VQ(size=5, width=3, beta=beta)({"params": {"codebook": table}, "state": {}}, z)
        return jnp.sum(chosen.penalty)

    table = variables["params"]["codebook"]
    slopes = jax.jit(jax.grad(penalty, (0, 1)), static_argnums=2)
    (table_1, z_1), (table_2, z_2) = (slopes(table, z, beta) for beta in (0.25, 0.5))
    near(table_1, table_2)
    near(2.0 * z_1, z_2)
    e = table[quantizer(variables, z).indices[..., 0]]
    near(z_1, 0.25 * 2.0 * (z - e) / (6 * 3))  # six places of three numbers
    assert float(jnp.abs(z_1).max()) > 1e-3
    wanted = np.zeros((5, 3))
    np.add.at(wanted, np.asarray(quantizer(variables, z).indices[..., 0]), np.asarray(2.0 * (e - z) / (6 * 3)))
    near(table_1, wanted)


@pytest.mark.parametrize("quantizer", tiers(QUANTIZERS, first=("vq", "ema", "fsq", "gumbel", "residual_vq")))
def test_the_decoders_gradient_reaches_the_encoder_and_no_codebook_but_by_its_own_loss(quantizer):
    variables, z = case(quantizer)
    weight = jax.random.normal(jax.random.key(3), (4, 3, 2, quantizer.outputs))
    read = lambda params, z: jnp.sum(weight * quantizer({**variables, "params": params}, z, jax.random.key(4)).z)  # noqa: E731
    params, slope = jax.jit(jax.grad(read, (0, 1)))(variables["params"], z)
    assert float(jnp.abs(slope).max()) > 1e-3
    if not isinstance(quantizer, Gumbel):  # whose codebook is the decoder's first layer
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(params))
    if getattr(quantizer, "gradient", "") == "straight_through":
        near(slope, weight)  # ∂q/∂z is the identity


@pytest.mark.thorough
def test_the_rotation_turns_each_latent_into_its_code():
    """∂q/∂z is λR: it takes z to e, keeps angles, and stretches by ‖e‖/‖z‖."""
    z, e = (jax.random.normal(jax.random.key(i), (6, 4)) for i in (0, 1))
    one = lambda z, e: through(z[None], e[None], "rotation")[0]  # noqa: E731
    np.testing.assert_array_equal(jax.vmap(one)(z, e), e)
    turned = jax.jit(jax.jacrev(one))
    matrix = jax.jit(jax.vmap(jax.jacrev(one)))(z, e)
    near(jnp.einsum("bij,bj->bi", matrix, z), e, 1e-5)
    stretch = jnp.sum(e**2, axis=1) / jnp.sum(z**2, axis=1)
    square = jnp.einsum("bij,bkj->bik", matrix, matrix)
    near(square, stretch[:, None, None] * jnp.eye(4)[None], 1e-4)
    assert np.all(np.linalg.det(np.asarray(matrix)) > 0)  # a rotation and no reflection
    assert np.isfinite(turned(jnp.zeros(4), e[0])).all()
    assert np.isfinite(turned(-e[0], e[0])).all()  # no plane to turn in


def test_averages_by_hand():
    """γ = ½, two codes; three latents choose the first and none the second."""
    quantizer = EMA(size=2, width=1, decay=0.5, epsilon=0.1)
    state = {
        "codebook": jnp.asarray([[0.0], [9.0]]),
        "count": jnp.asarray([2.0, 1.0]),
        "sum": jnp.asarray([[0.0], [9.0]]),
    }
    z = jnp.asarray([[[1.0], [2.0], [3.0]]])
    found = quantizer({"params": {}, "state": state}, z, jax.random.key(0))
    near(found.penalty, [0.25 * (1 + 4 + 9) / 3], 1e-5)  # on the codes as they were
    near(found.state["count"], [0.5 * 2 + 0.5 * 3, 0.5])
    near(found.state["sum"], [[3.0], [4.5]])
    smoothed = (2.5 + 0.1) / (3.0 + 2 * 0.1) * 3.0
    near(found.state["codebook"], [[3.0 / smoothed], [9.0]])  # what nobody chose stays


def test_the_codes_that_nobody_chooses_stay_where_they_are():
    """In 1,000 steps: N and M fade, their ratio does not."""
    quantizer = EMA(size=4, width=2, start="random")
    state = quantizer.init(jax.random.key(0), jnp.zeros((1, 1, 2)))["state"]
    far = jnp.asarray([[0.1, 0.1], [5.0, 5.0], [-6.0, 5.0], [50.0, 0.0]])
    state |= {"codebook": far, "sum": jnp.copy(far)}

    def step(state, key):
        z = 0.2 * jax.random.normal(key, (3, 5, 2))
        return quantizer({"params": {}, "state": state}, z, key).state, None

    after, _ = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 1000)))(state)
    np.testing.assert_array_equal(after["codebook"][1:], far[1:])
    assert float(jnp.abs(after["codebook"][0]).max()) < 0.1  # the one in use went to the middle
    assert float(after["count"][1]) < 1e-4


def test_a_restart_sets_code_count_and_sum_together():
    quantizer = EMA(size=4, width=2, restart=0.5)
    table = jnp.asarray([[0.0, 0.0], [50.0, 50.0], [-50.0, 0.0], [1.0, 1.0]])
    count = jnp.asarray([4.0, 0.01, 0.01, 4.0])
    state = {"codebook": table, "count": count, "sum": count[:, None] * table}
    z = jax.random.uniform(jax.random.key(0), (2, 8, 2))
    after = jax.jit(quantizer)({"params": {}, "state": state}, z, jax.random.key(1)).state
    rows = z.reshape(-1, 2)
    for dead in (1, 2):
        assert float(jnp.abs(rows - after["codebook"][dead][None]).sum(axis=1).min()) == 0.0  # a latent of the batch
        near(after["sum"][dead], after["count"][dead] * after["codebook"][dead], 1e-5)
        assert float(after["count"][dead]) > 1.0
    assert float(jnp.abs(after["codebook"][1] - after["codebook"][2]).max()) > 0  # and not the same one
    for alive in (0, 3):
        assert float(jnp.abs(after["codebook"][alive] - table[alive]).max()) < 1.0
    untouched = quantizer({"params": {}, "state": {**state, "count": jnp.full(4, 4.0)}}, z, jax.random.key(1)).state
    np.testing.assert_array_equal(untouched["codebook"][1], table[1])


def test_statistics_of_eight_devices_are_those_of_one():
    quantizer = EMA(size=6, width=3, restart=0.3)
    variables, z = case(quantizer, size=16)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ()))
    step = lambda v, z: quantizer(v, z, jax.random.key(5))  # noqa: E731
    one = jax.jit(step)(variables, z)
    eight = jax.jit(step, in_shardings=(whole, split))(jax.device_put(variables, whole), jax.device_put(z, split))
    assert len(jax.devices()) == 8
    for a, b in zip(
        jax.tree.leaves((one.state, one.metrics)), jax.tree.leaves((eight.state, eight.metrics)), strict=True
    ):
        near(a, b, 1e-5)
    assert len(np.unique(one.indices)) > 3


def test_fsq_goes_round_with_every_index():
    quantizer = FSQ(levels=(8, 5, 3, 2))
    every = jnp.arange(quantizer.codes)[:, None]
    assert quantizer.codes == 240
    codes = quantizer.embed({}, every)
    assert len(np.unique(np.asarray(codes), axis=0)) == 240
    assert float(jnp.abs(codes).max()) == 1.0
    # An encoder's output for each of them, by the inverse of the bound.
    levels = np.asarray(quantizer.levels, np.float64)
    reach, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    whole = np.asarray(codes, np.float64) * (levels // 2)
    z = np.arctanh((whole + offset) / reach) - np.where(levels == 2, 0.0, np.arctanh(offset / reach))
    found = quantizer({"params": {}, "state": {}}, jnp.asarray(z, jnp.float32))
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(240))
    near(found.z, codes)
    near(quantizer({"params": {}, "state": {}}, jnp.zeros((1, 4))).z, [[0.0] * 4])


def test_two_levels_are_told_apart_at_zero_and_with_a_slope_there():
    through = lambda z: FSQ(levels=(2, 2))({"params": {}, "state": {}}, z)  # noqa: E731
    np.testing.assert_array_equal(through(jnp.asarray([[0.1, -0.1], [-0.1, 0.1]])).indices[:, 0], [1, 2])
    near(jax.grad(lambda z: jnp.sum(through(z).z))(jnp.zeros((1, 2))), [[0.5005, 0.5005]])


@pytest.mark.parametrize(
    "codebook",
    tiers([EMA(size=16, width=4, start="kmeans"), VQ(size=16, width=4)], first=(VQ(size=16, width=4),)),
)
def test_each_level_leaves_less(codebook):
    z = jax.random.normal(jax.random.key(0), (64, 9, 4))
    quantizer = ResidualVQ(codebook=codebook, depth=4)
    variables = quantizer.init(jax.random.key(1), z)
    if isinstance(codebook, EMA):
        step = jax.jit(quantizer)
        for i in range(20):
            variables = {**variables, "state": step(variables, z, jax.random.key(i)).state}
    indices = quantizer(variables, z).indices
    errors = [float(jnp.mean((z - quantizer.embed(variables, indices[..., :depth])) ** 2)) for depth in (1, 2, 3, 4)]
    assert all(after < 0.8 * before for before, after in itertools.pairwise([1.0, *errors])), errors
    near(quantizer(variables, z).z, quantizer.embed(variables, indices), 1e-5)


def test_a_gumbel_draws_by_its_logits_and_cools():
    quantizer = Gumbel(size=3, width=2, temperature=1.0, last_temperature=0.1, anneal=10)
    z = jnp.tile(jnp.log(jnp.asarray([0.5, 0.3, 0.2]))[None, None], (400, 25, 1))
    variables = quantizer.init(jax.random.key(0), z)
    found = quantizer(variables, z, jax.random.key(1))
    near(np.bincount(np.asarray(found.indices).reshape(-1)) / 10_000, [0.5, 0.3, 0.2], 0.02)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    near(found.kl, np.full(400, 25 * (math.log(3) - entropy)), 1e-3)
    assert int(found.state["step"]) == 1
    near([quantizer.temperature_at(jnp.asarray(n)) for n in (0, 5, 10, 99)], [1.0, 0.1**0.5, 0.1, 0.1])
    hard = Gumbel(size=3, width=2, hard=True)(variables, z, jax.random.key(1))
    near(hard.z, quantizer.embed(variables, hard.indices))


def test_without_codes_what_goes_through_is_the_latent_and_the_rate_a_divergence():
    z = jax.random.normal(jax.random.key(0), (5, 2, 2, 6))
    near(Plain(width=6)(Plain(width=6).init(jax.random.key(0), z), z).z, z)
    normal = NormalPosterior(width=3)
    found = normal({"params": {}, "state": {}}, z)
    mean, std = np.split(np.asarray(z), 2, axis=-1)[0], np.exp(np.split(np.asarray(z), 2, axis=-1)[1])
    near(found.z, mean)
    # E_q[log q − log p], by draws.
    draws = mean + std * np.random.default_rng(0).normal(size=(20_000, *mean.shape))
    log_q = -0.5 * ((draws - mean) / std) ** 2 - np.log(std)
    by_draws = (log_q + 0.5 * draws**2).mean(0).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found.kl, by_draws, rtol=0.02)
    drawn = normal({"params": {}, "state": {}}, z, jax.random.key(1)).z
    assert float(jnp.abs(drawn - mean).max()) > 0.1


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: VQ(size=1), "2 or more"),
        (lambda: EMA(beta=-1.0), "beta"),
        (lambda: FSQ(levels=(1, 3)), "2 levels"),
        (lambda: ResidualVQ(depth=0), "depth"),
        (lambda: ResidualVQ(codebook=EMA(heads=2)), "one head"),
        (lambda: Gumbel(last_temperature=2.0), "temperature"),
        (lambda: Plain(width=0), "nothing through"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
