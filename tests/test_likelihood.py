"""Likelihoods against densities known in closed form; bits/dim against counts of levels; unbiased traces."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import log_ndtr
from scipy.special import logsumexp

from data import images
from data.arrays import ArraySource
from data.digits import Digits
from data.images import TFDS
from data.toys import EightGaussians
from metrics.likelihood import Likelihood, bits_per_dim, dequantize, probability_flow_log_prob
from metrics.metric import Evaluation
from models.model import Model
from models.trace import Exact, Hutchinson
from paths.path import expand
from paths.schedules import VP, Cosine, Rectified
from samplers.integrators import Adaptive, FixedStep
from samplers.targets import GAUSSIAN_64, LINE, PLANE
from tests.conftest import tiers
from tests.exact import MEANS, STD, exact
from tests.exact import PATHS as ALL_PATHS
from tests.exact import WEIGHTS as EXACT_WEIGHTS
from tests.levels import ENTROPY, Lattice, lattice_denoiser

INTEGRATORS = {"rk4": FixedStep(), "dopri5": Adaptive()}
PATHS = {name: path for name, path in ALL_PATHS.items() if name != "edm"}  # σ(0) = 0.002 of 80: VE with other ends


def velocity_of(denoise, path):
    """dx/dt from an x̂₀, paths/path.py eq. 4."""

    def velocity(x, t, condition):
        alpha_dot, sigma_dot = path.derivatives(t)
        x0 = denoise(x, t[0])
        eps = (x - expand(path.alpha(t), x) * x0) / expand(path.sigma(t), x)
        return expand(alpha_dot, x) * x0 + expand(sigma_dot, x) * eps

    return velocity


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def log_normal(z, std):
    return -0.5 * (z / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def line_density(path, x, t):
    """log pₜ of LINE in float64, on the host."""
    means, variances = path.alpha(t) * LINE.means[:, 0], (path.alpha(t) * LINE.stds[:, 0]) ** 2 + path.sigma(t) ** 2
    return logsumexp(log_normal(x[:, None] - means, np.sqrt(variances)), b=LINE.weights, axis=1)


@pytest.mark.parametrize(
    ("name", "integrator"),
    tiers(
        {f"{name}-{method}": (name, integrator) for name in PATHS for method, integrator in INTEGRATORS.items()},
        first=("vp-rk4", "rectified-dopri5"),
    ),
)
def test_log_prob_of_a_mixture_is_the_closed_form(name, integrator):
    """log p at t_min, but for the prior: N(0, σ(1)²) stands for p₁, and how far they are apart at the end is known."""
    path, ranks = PATHS[name], (np.arange(24) + 0.5) / 24
    x, z = (LINE.quantile(path, ranks, t) for t in (path.t_min, 1.0))
    expected = line_density(path, x, path.t_min) + log_normal(z, path.sigma(1.0)) - line_density(path, z, 1.0)
    assert np.abs(expected - line_density(path, x, path.t_min)).max() < 3e-3  # the mixture is centred: its prior fits
    velocity = velocity_of(LINE.denoise(path), path)
    solve = jax.jit(lambda x: probability_flow_log_prob(velocity, path, x, keys(24), integrator, Exact()))
    log_prob, nfe = solve(jnp.asarray(x, jnp.float32)[:, None])
    np.testing.assert_allclose(log_prob, expected, atol=1e-4 if isinstance(integrator, FixedStep) else 1e-3)
    assert log_prob.dtype == jnp.float32
    assert (nfe == 400).all() if isinstance(integrator, FixedStep) else (nfe < 250).all()


@pytest.mark.thorough
def test_log_prob_in_64_dimensions():
    with jax.enable_x64(True):
        path, x = Rectified(), GAUSSIAN_64.sample(jax.random.key(1), 4)
        velocity = velocity_of(GAUSSIAN_64.denoise(path), path)
        solve = jax.jit(lambda x: probability_flow_log_prob(velocity, path, x, keys(4), FixedStep(), Exact()))
        np.testing.assert_allclose(solve(x)[0], GAUSSIAN_64.log_prob(path, x, jnp.asarray(path.t_min)), atol=1e-3)


def test_the_density_is_taken_where_it_was_asked_for_and_noise_is_needed_there():
    path, x = VP(), jnp.asarray([[0.3], [-1.0]])
    velocity = velocity_of(LINE.denoise(path), path)
    log_prob, _ = probability_flow_log_prob(velocity, path, x, keys(2), FixedStep(), Exact(), t_min=0.1)
    np.testing.assert_allclose(log_prob, LINE.log_prob(path, x, jnp.asarray(0.1)), atol=1e-3)
    with pytest.raises(ValueError, match="has none at t_min=0"):
        probability_flow_log_prob(velocity, path, x, keys(2), FixedStep(), Exact(), t_min=0.0)


@pytest.mark.parametrize("noise", tiers(["rademacher", "gaussian"], first=("gaussian",)))
def test_hutchinson_is_unbiased(noise):
    path, n = Rectified(), 1500
    x = jnp.broadcast_to(jnp.asarray([0.1, 0.2]), (n, 2))  # between the components: the Jacobian is not diagonal
    solve = lambda trace, x, keys: probability_flow_log_prob(  # noqa: E731
        velocity_of(PLANE.denoise(path), path), path, x, keys, FixedStep(steps=40), trace
    )[0]
    truth = float(jax.jit(partial(solve, Exact()))(x[:1], keys(1))[0])
    assert truth == pytest.approx(float(PLANE.log_prob(path, x[:1], jnp.asarray(path.t_min))[0]), abs=1e-3)
    errors = {}
    for probes in (1, 4):
        estimates = np.asarray(jax.jit(partial(solve, Hutchinson(noise=noise, probes=probes)))(x, keys(n, probes)))
        errors[probes] = estimates.std() / np.sqrt(n)
        assert abs(estimates.mean() - truth) < 4 * errors[probes]
        assert 1e-3 < errors[probes] < 0.1
    assert errors[1] / errors[4] == pytest.approx(2.0, rel=0.15)


def test_nothing_depends_on_the_batch():
    path, x, some = VP(), PLANE.sample(jax.random.key(3), 6), jnp.asarray([4, 1])
    velocity = velocity_of(PLANE.denoise(path), path)
    solve = jax.jit(lambda x, k: probability_flow_log_prob(velocity, path, x, k, Adaptive(), Hutchinson()))
    whole, nfe = solve(x, keys(6))
    elsewhere = jnp.asarray([0, 5])  # two examples with their keys, among others, in other places
    among, nfe_among = solve(x[::-1].at[elsewhere].set(x[some]), keys(6, seed=1).at[elsewhere].set(keys(6)[some]))
    np.testing.assert_allclose(among[elsewhere], whole[some], atol=1e-5)
    np.testing.assert_array_equal(nfe_among[elsewhere], nfe[some])
    assert len(set(nfe.tolist())) > 1


def test_reported_evaluations_are_counted_ones():
    path, calls = Cosine(), 0
    exactly = velocity_of(LINE.denoise(path), path)

    def count(x):
        nonlocal calls
        calls += 1
        return x

    def velocity(x, t, condition):
        jax.debug.callback(count, t)
        return exactly(x, t, condition)

    for integrator in (FixedStep(method="heun", steps=7), Adaptive()):
        calls = 0
        solve = jax.jit(
            lambda x, integrator=integrator: probability_flow_log_prob(velocity, path, x, keys(1), integrator, Exact())
        )
        nfe = solve(jnp.asarray([[0.4]]))[1]
        jax.effects_barrier()
        assert int(nfe[0]) == calls
        assert calls >= 14


def test_uniform_data_has_the_bits_of_its_levels():
    """256 equal levels are 8 bits: by the formula, in any range, and through the ODE."""
    for width in (1.0, 2.0):
        log_prob = -3 * np.log(width)
        assert bits_per_dim(log_prob, 3, width / 256) == pytest.approx(8.0, abs=1e-12)
        assert bits_per_dim(log_prob, 3, width / 128) == pytest.approx(7.0, abs=1e-12)  # a factor of 2 is a bit

    def denoise(x, t):  # the mean of a normal N(x/α, (σ/α)²) cut to [−1, 1]
        alpha, sigma = path.alpha(t), path.sigma(t)
        a, b = (-alpha - x) / sigma, (alpha - x) / sigma
        lower, upper = jnp.where(a + b > 0, -b, a), jnp.where(a + b > 0, -a, b)  # in the left tail
        log_mass = log_ndtr(upper) + jnp.log(-jnp.expm1(log_ndtr(lower) - log_ndtr(upper)))
        density = lambda z: jnp.exp(-0.5 * z**2 - log_mass) / np.sqrt(2 * np.pi)  # noqa: E731
        return (x + sigma * (density(a) - density(b))) / alpha

    with jax.enable_x64(True):
        path, x = VP(), jnp.linspace(-0.9, 0.9, 8).reshape(4, 2)
        velocity = velocity_of(denoise, path)
        solve = jax.jit(lambda x: probability_flow_log_prob(velocity, path, x, keys(4), FixedStep(steps=200), Exact()))
        np.testing.assert_allclose(bits_per_dim(solve(x)[0], 2, 2 / 256), 8.0, atol=1e-3)


def test_the_range_of_the_data_costs_no_bits_if_its_bins_are_scaled_along():
    """The same data in [0, 1] and in [−1, 1]: half the spread, half the bin."""
    path, x = Rectified(), PLANE.sample(jax.random.key(0), 5)
    wide = velocity_of(PLANE.denoise(path), path)
    half = type(PLANE)(weights=PLANE.weights, means=PLANE.means / 2, stds=PLANE.stds / 2)
    narrow = velocity_of(half.denoise(path), path)
    solve = lambda u, x: jax.jit(  # noqa: E731
        lambda x: probability_flow_log_prob(u, path, x, keys(len(x)), FixedStep(), Exact())[0]
    )(x)
    a, b = solve(wide, x), solve(narrow, x / 2)
    np.testing.assert_allclose(bits_per_dim(a, 2, 2 / 255), bits_per_dim(b, 2, 1 / 255), atol=1e-3)
    np.testing.assert_allclose(bits_per_dim(a, 2, 1 / 255), bits_per_dim(b, 2, 1 / 255) + 1.0, atol=1e-3)
    with pytest.raises(ValueError, match="positive width"):
        bits_per_dim(a, 2, 0.0)


def test_dequantisation_fills_each_bin_evenly():
    x = dequantize(keys(4000), jnp.full((4000, 3), 0.25), 0.125)
    assert (jnp.abs(x - 0.25) <= 0.0625).all()
    assert float(x.mean()) == pytest.approx(0.25, abs=4 * 0.125 / np.sqrt(12 * 12000))
    assert float(x.std()) == pytest.approx(0.125 / np.sqrt(12), rel=0.02)


def test_data_sets_know_their_bins(monkeypatch):
    x = Digits().arrays("train", 2000)["x"]
    assert Digits().bin_width == 0.125
    assert len(np.unique(x)) == 17
    np.testing.assert_array_equal((x + 1.0) / 0.125 % 1.0, 0.0)
    assert EightGaussians().bin_width is None
    for dtype, width in ((np.uint8, 2 / 255), (np.uint16, 2 / 65535), (np.float32, None)):
        feature = SimpleNamespace(np_dtype=dtype)
        builder = SimpleNamespace(info=SimpleNamespace(features={"image": feature}))
        monkeypatch.setattr(images, "_builder", lambda name, builder=builder: builder)
        assert TFDS(name="any").bin_width == width


def evaluation(model, data, variables=None):
    return Evaluation(model, variables or {"params": {}, "state": {}}, data, lambda n: np.zeros((n, 2)))


@dataclass(frozen=True, kw_only=True)
class MixtureData(Lattice):
    """The mixture of tests/exact.py, as data."""

    continuous: bool = True

    def source(self, split):
        random = np.random.RandomState(1)
        x = MEANS[random.choice(3, 2000, p=EXACT_WEIGHTS)] + STD * random.randn(2000, 2)
        return ArraySource(x.astype(np.float32), None, lambda x: x)


def test_the_metric_reports_nats_for_continuous_data():
    metric = Likelihood(examples=50, integrator=FixedStep(), trace=Exact(), batch_size=32)
    numbers = metric(evaluation(exact(Rectified()), MixtureData()))
    assert set(numbers) == {"nll", "nll_stderr", "likelihood_nfe"}
    x = MixtureData().arrays("test", 50)["x"]
    away = ((x[:, None] - MEANS[None]) ** 2).sum(-1) / STD**2
    nll = -np.log((EXACT_WEIGHTS * np.exp(-0.5 * away) / (2 * np.pi * STD**2)).sum(1))
    assert numbers["nll"] == pytest.approx(nll.mean(), abs=1e-3)
    assert numbers["nll_stderr"] == pytest.approx(nll.std(ddof=1) / np.sqrt(50), rel=1e-2)
    assert numbers["likelihood_nfe"] == 400


def test_the_metric_reports_bits_for_discrete_data():
    """A bound on the entropy. It depends neither on the batch size nor on the number of devices."""
    metric = partial(Likelihood, examples=60, integrator=FixedStep(steps=60), t_min=0.05)
    model = lattice_denoiser(Rectified())
    numbers = metric(batch_size=60)(evaluation(model, Lattice()))
    assert set(numbers) == {"bits_per_dim", "bits_per_dim_stderr", "likelihood_nfe"}
    assert numbers["bits_per_dim"] > ENTROPY / 2 / np.log(2) - 4 * numbers["bits_per_dim_stderr"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(jnp.zeros(3), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    spread = metric(batch_size=16)(evaluation(model, Lattice(), {"params": {"unused": everywhere}, "state": {}}))
    assert spread == pytest.approx(numbers, abs=1e-5)
    given = metric(batch_size=60)(evaluation(lattice_denoiser(Rectified(), classes=5), Lattice(classes=5)))
    assert given["bits_per_dim_given_label"] == pytest.approx(numbers["bits_per_dim"], abs=1e-5)


@dataclass(frozen=True, kw_only=True)
class Other(Model):
    def init(self, key, batch):
        return {}


def test_mistakes_get_one_clear_line():
    with pytest.raises(ValueError, match="the likelihood is measured on a Denoiser; this run's model is Other"):
        Likelihood()(evaluation(Other(), Lattice()))
    hurried = Likelihood(examples=4, integrator=Adaptive(max_steps=2))
    with pytest.raises(ValueError, match="4 of 4 solves gave no finite density"):
        hurried(evaluation(lattice_denoiser(Rectified()), Lattice()))
    with pytest.raises(ValueError, match="examples must be at least 2"):
        Likelihood(examples=1)
    with pytest.raises(ValueError, match="at least 1 probe"):
        Hutchinson(probes=0)
