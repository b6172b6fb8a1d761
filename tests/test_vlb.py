"""The variational bound: each term by hand, the sum above the entropy of exactly known data, and closing in on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from data.toys import EightGaussians
from metrics.metric import Evaluation
from metrics.vlb import VLB, log_bin_mass, step_coefficients, vlb_terms
from paths.grids import Knots, Quadratic, Uniform, UniformLogSNR
from paths.schedules import VE, VP, Cosine, DDPMLinear
from samplers.sampler import noise_of_steps
from tests.conftest import tiers
from tests.levels import ENTROPY, Lattice, lattice_denoiser
from tests.test_likelihood import Other


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def gaussian_kl(mean1, var1, mean2, var2):
    """KL(N(mean1, var1) ‖ N(mean2, var2)) of each coordinate."""
    return 0.5 * (np.log(var2 / var1) + (var1 + (mean1 - mean2) ** 2) / var2 - 1.0)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_each_term_is_the_papers(variance):
    """2006.11239 in its own letters, β_t and ᾱ_t at t = 1000, 750, 500, 250, with a network that says x̂₀ = x/2."""
    path, n = DDPMLinear(), 5
    x0 = jax.random.uniform(jax.random.key(1), (n, 3), minval=-1.0)
    knots = Uniform().knots(path, 4)  # 1000, 750, 500, 250, data
    terms = vlb_terms(lambda x, t: 0.5 * x, knots, x0, keys(n), 0.5, variance)
    bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    bars = [1.0, *bar[[249, 499, 749, 999]]]  # ᾱ at data, 250, 500, 750, 1000
    data = np.asarray(x0, np.float64)
    noise = [np.asarray(noise_of_steps(keys(n), x0)(i)()) for i in range(4)]
    prior = gaussian_kl(np.sqrt(bars[4]) * data, 1 - bars[4], 0.0, 1 - bars[4]).sum(1)
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-5)
    for i in range(3):
        now, before = bars[4 - i], bars[3 - i]
        beta = 1.0 - now / before
        tilde = (1.0 - before) / (1.0 - now) * beta
        x = np.sqrt(now) * data + np.sqrt(1 - now) * noise[i]
        mean = lambda x0: (  # noqa: E731, eq. 7
            np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(now / before) * (1 - before) / (1 - now) * x  # noqa: B023
        )
        kl = gaussian_kl(mean(data), tilde, mean(0.5 * x), {"beta": beta, "beta_tilde": tilde}[variance]).sum(1)
        np.testing.assert_allclose(terms.steps[i], kl, rtol=2e-5)
    x = np.sqrt(bars[1]) * data + np.sqrt(1 - bars[1]) * noise[3]
    decoder = -bin_mass(data, 0.5 * x, np.sqrt(1 - bars[1]), 0.5).sum(1)
    np.testing.assert_allclose(terms.decoder, decoder, rtol=1e-4)
    np.testing.assert_allclose(terms.total, prior + np.asarray(terms.steps).sum(0) + decoder, rtol=1e-4)


def bin_mass(x, mean, std, width):
    """Eq. 13 in float64, from whichever tail keeps its digits."""
    a, b = (x - width / 2 - mean) / std, (x + width / 2 - mean) / std
    a, b = np.where(x < -1 + width / 2, -np.inf, a), np.where(x > 1 - width / 2, np.inf, b)
    a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)
    return log_ndtr(b) + np.log(-np.expm1(log_ndtr(a) - log_ndtr(b)))


@pytest.mark.parametrize(("width", "std"), [(0.5, 0.3), (2 / 255, 0.01), (2 / 255, 1e-4), (2 / 65535, 0.01)])
def test_the_mass_of_a_bin_in_float32(width, std):
    levels = np.round(2 / width)
    x = (np.random.RandomState(0).randint(0, levels + 1, 400) / levels * 2 - 1).astype(np.float32)
    x[:2] = -1.0, 1.0
    for mean in (x + np.float32(std) * np.random.RandomState(1).randn(400).astype(np.float32), np.zeros_like(x)):
        found = np.asarray(log_bin_mass(jnp.asarray(x), jnp.asarray(mean), std, width))
        assert np.isfinite(found).all()
        reference = bin_mass(x.astype(np.float64), mean.astype(np.float64), std, width)
        np.testing.assert_allclose(found, reference, rtol=2e-4, atol=1e-3)
    if width == 0.5:  # all bins together hold everything
        mass = jnp.exp(log_bin_mass(jnp.linspace(-1, 1, 5), jnp.full((5,), 0.37), std, width))
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)


def test_the_larger_variance_costs_what_the_gaussians_are_apart():
    """With the exact mean all that is left of (3) is D·constant: none for β̃, and KL(β̃ ‖ β) for β."""
    knots = Quadratic().knots(VP(), 6)
    constant, weight = step_coefficients(knots, "beta")
    ratio = (knots.sigma[1:-1] / knots.sigma[:-2]) ** 2
    np.testing.assert_allclose(constant, gaussian_kl(0.0, ratio, 0.0, 1.0), rtol=1e-9)
    smaller = step_coefficients(knots, "beta_tilde")
    np.testing.assert_array_equal(smaller[0], 0.0)
    np.testing.assert_allclose(weight / smaller[1], ratio)
    # half the log-SNR won: Σ ½(SNR' − SNR), Kingma et al. 2107.00630 eq. 13
    snr = (knots.alpha[:-1] / knots.sigma[:-1]) ** 2
    np.testing.assert_allclose(smaller[1], 0.5 * np.diff(snr), rtol=1e-9)


@pytest.mark.parametrize(
    ("path", "grid", "variance"),
    tiers({"cosine": (Cosine(), Uniform(), "beta_tilde"), "ve": (VE(), UniformLogSNR(), "beta")}, first=("cosine",)),
)
def test_the_bound_is_above_the_entropy_and_closes_in_on_it(path, grid, variance):
    """Data on five levels with its exact denoiser, averaged over the data and the noise; the gap falls as 1/steps."""
    model, x0 = lattice_denoiser(path), jnp.asarray(Lattice().arrays("test", 4000)["x"])
    denoise = lambda x, t: model.denoise({}, x, jnp.broadcast_to(t, x.shape[:1]))  # noqa: E731
    gaps, errors = [], []
    for steps in (16, 64, 256):
        knots = grid.knots(path, steps)
        terms = jax.jit(lambda x, k, knots=knots: vlb_terms(denoise, knots, x, k, 0.5, variance))(x0, keys(4000))
        total = np.asarray(terms.total, np.float64)
        assert (np.asarray(terms.steps) >= 0).all()
        gaps.append(total.mean() - ENTROPY)
        errors.append(total.std() / np.sqrt(4000))
    assert all(gap > -3 * error for gap, error in zip(gaps, errors, strict=True))
    assert gaps[0] > 2.5 * gaps[1] > 2.5**2 * gaps[2]


def evaluation(model, data):
    return Evaluation(model, {"params": {}, "state": {}}, data, lambda n: np.zeros((n, 2)))


def test_the_metric():
    metric = VLB(examples=100, steps=20, batch_size=40)
    numbers = metric(evaluation(lattice_denoiser(Cosine()), Lattice()))
    parts = [numbers[f"vlb_{name}"] for name in ("prior", "steps", "decoder")]
    assert numbers["vlb_bits_per_dim"] == pytest.approx(sum(parts), abs=1e-9)
    assert numbers["vlb_nfe"] == 20
    assert set(numbers) == {"vlb_prior", "vlb_steps", "vlb_decoder", "vlb_nfe"} | {
        f"vlb_bits_per_dim{suffix}" for suffix in ("", "_stderr")
    }
    again = VLB(examples=100, steps=20, batch_size=100)(evaluation(lattice_denoiser(Cosine()), Lattice()))
    assert again == pytest.approx(numbers, abs=1e-5)
    given = metric(evaluation(lattice_denoiser(Cosine(), classes=5), Lattice(classes=5)))
    assert given["vlb_bits_per_dim_given_label"] == pytest.approx(numbers["vlb_bits_per_dim"], abs=1e-5)


def test_mistakes_get_one_clear_line():
    with pytest.raises(ValueError, match="EightGaussians is continuous: it has no bins"):
        VLB().check(EightGaussians())
    with pytest.raises(ValueError, match="measured on a Denoiser; this run's model is Other"):
        VLB()(evaluation(Other(), Lattice()))
    with pytest.raises(ValueError, match="at least 1 step"):
        VLB(steps=0)
    noisy = Knots(*np.asarray([[1.0, 0.5], [0.1, 0.5], [1.0, 0.5]]))
    with pytest.raises(ValueError, match=r"end at clean data, not at sigma=0\.5"):
        vlb_terms(lambda x, t: x, noisy, jnp.zeros((1, 2)), keys(1), 0.5)
