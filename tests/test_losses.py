"""The denoising loss: values an example, weights against their papers, times against their distributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.denoising import Denoising
from losses.times import Discrete, LogitNormal, LogNormal
from losses.times import Uniform as UniformTimes
from losses.weighting import EDM as EDMWeighting
from losses.weighting import P2, Likelihood, MinSNR, Sigmoid
from losses.weighting import Uniform as UniformWeighting
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.schedules import EDM, VP, Cosine, DDPMLinear, Rectified
from tests.conftest import tiers
from tests.exact import MEANS, PATHS, STD, WEIGHTS, denoise, exact

T = jnp.linspace(0.05, 0.95, 19)
STEP = jnp.zeros((), jnp.int32)


def denoiser(path, predicts, sigma_data=0.5):
    return Denoiser(net=MLP(), path=path, predicts=predicts, sigma_data=sigma_data)


def mixture(key, n):
    which, noise = jax.random.split(key)
    component = jax.random.choice(which, 3, (n,), p=jnp.asarray(WEIGHTS))
    return jnp.asarray(MEANS, jnp.float32)[component] + STD * jax.random.normal(noise, (n, 2))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("path", [VP(), Cosine(), Rectified(), EDM()], ids=str)
def test_weights_in_data_space_do_not_depend_on_the_face(path, predicts):
    """w·‖F − y‖² = W·‖x̂₀ − x₀‖²: every weighting but uniform means the same whatever the network says."""
    model = denoiser(path, predicts)
    reference = denoiser(path, "x0")
    c_out = model.face(T).c_out
    for weighting in (MinSNR(), P2(), Sigmoid(), EDMWeighting(), Likelihood()):
        np.testing.assert_allclose(weighting(model, T) / c_out**2, weighting(reference, T), rtol=2e-3)


def test_weights_are_the_papers():
    eps, v = denoiser(VP(), "eps"), denoiser(VP(), "v")
    snr = jnp.exp(VP().log_snr(T))
    np.testing.assert_allclose(UniformWeighting()(eps, T), 1.0)
    np.testing.assert_allclose(MinSNR(gamma=5.0)(eps, T), jnp.minimum(snr, 5.0) / snr, rtol=1e-3)
    np.testing.assert_allclose(MinSNR(gamma=5.0)(v, T), jnp.minimum(snr, 5.0) / (snr + 1), rtol=1e-3)
    np.testing.assert_allclose(P2(gamma=0.5, k=1.0)(eps, T), (1 + snr) ** -0.5, rtol=1e-3)
    np.testing.assert_allclose(EDMWeighting()(denoiser(EDM(), "edm"), T), 1.0, rtol=1e-4)
    # VP with likelihood weighting: g² = β(t), and the score's error is the eps error over σ
    beta = 0.1 + 19.9 * T
    np.testing.assert_allclose(Likelihood()(eps, T), 0.5 * beta / VP().sigma(T) ** 2, rtol=1e-3)
    # without the sigmoid, the weight is the evidence bound's: the same as likelihood weighting (2303.00848 eq. 6)
    np.testing.assert_allclose(Sigmoid(bias=60.0)(eps, T), Likelihood()(eps, T), rtol=2e-3)


@pytest.mark.parametrize(
    ("name", "predicts"),
    tiers(
        itertools.product(PATHS, ("eps", "x0", "v", "velocity", "score", "edm")),
        first=lambda name, predicts: name == "rectified" or (predicts == "eps" and name == "ve"),
    ),
)
def test_loss_is_one_finite_value_an_example_at_every_face_and_path(name, predicts):
    path = PATHS[name]
    model = denoiser(path, predicts)
    batch = {"x": mixture(jax.random.key(0), 32)}
    variables = jax.jit(model.init)(jax.random.key(1), batch)
    for weighting in (UniformWeighting(), MinSNR(), Sigmoid(), EDMWeighting(), Likelihood()):
        result = Denoising(weighting=weighting)(model, variables, jax.random.key(2), batch, STEP)
        assert result.value.shape == (32,)
        assert np.isfinite(result.value).all()
        assert (np.asarray(result.value) >= 0).all()


@pytest.mark.parametrize("path", [VP(), Rectified()], ids=str)
def test_the_exact_denoiser_minimises_the_loss(path):
    """The posterior mean beats itself scaled or shifted, at the same draws."""
    batch = {"x": mixture(jax.random.key(0), 4096)}

    class Off(type(exact(path))):
        def raw(self, variables, x, t, condition=None, dropout=None):
            return super().raw(variables, x, t) * 1.1 + 0.05

    best, off = exact(path, "x0"), Off(net=MLP(), path=path, predicts="x0")
    values = [
        Denoising()(m, {"params": {}, "state": {}}, jax.random.key(2), batch, STEP).value.mean() for m in (best, off)
    ]
    assert values[0] < values[1]


def test_loss_is_the_papers_l_simple():
    """2006.11239 alg. 1, written out: ‖ε − ε_θ(√ᾱ x₀ + √(1−ᾱ) ε, t)‖² at t ∈ {1 … T}."""
    path = DDPMLinear()
    model = exact(path, "eps")
    x0 = mixture(jax.random.key(0), 64)
    loss = Denoising(times=Discrete(steps=1000))
    value = loss(model, {"params": {}, "state": {}}, jax.random.key(9), {"x": x0}, STEP).value
    time_key, noise_key, *_ = jax.random.split(jax.random.key(9), 4)
    t = loss.times(time_key, 64, path)
    index = np.round(np.asarray(t) * 1000).astype(int)
    assert index.min() >= 1
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[index - 1][:, None]
    eps = np.asarray(jax.random.normal(noise_key, x0.shape))
    xt = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
    predicted = (xt - np.sqrt(alpha_bar) * denoise(path, xt, t)) / np.sqrt(1 - alpha_bar)
    np.testing.assert_allclose(value, np.mean((eps - predicted) ** 2, axis=1), rtol=1e-3, atol=1e-5)


def test_label_dropout_replaces_labels_by_no_class():
    seen = []

    class Watching(type(exact(VP()))):
        def raw(self, variables, x, t, condition=None, dropout=None):
            seen.append(np.asarray(condition["label"]))
            return super().raw(variables, x, t)

    batch = {"x": mixture(jax.random.key(0), 2000), "label": jnp.arange(2000, dtype=jnp.int32) % 7}
    model = Watching(net=MLP(), path=VP(), predicts="x0")
    Denoising(label_dropout=0.25)(model, {"params": {}, "state": {}}, jax.random.key(2), batch, STEP)
    dropped = seen[0] == -1
    assert abs(dropped.mean() - 0.25) < 0.04
    np.testing.assert_array_equal(seen[0][~dropped], np.asarray(batch["label"])[~dropped])


def test_times_follow_their_distributions(key):
    n, path = 20_000, VP()
    uniform = UniformTimes()(key, n, path)
    assert uniform.min() >= path.t_min
    np.testing.assert_allclose(np.quantile(uniform, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)
    logit = LogitNormal(mean=0.3, std=0.8)(key, n, Rectified())
    z = np.log(logit / (1 - logit))
    assert (z.mean(), z.std()) == (pytest.approx(0.3, abs=0.03), pytest.approx(0.8, abs=0.03))
    for path in (EDM(), VP()):
        log_noise = -0.5 * np.asarray(path.log_snr(LogNormal()(key, n, path)))
        assert np.median(log_noise) == pytest.approx(-1.2, abs=0.05)
        assert log_noise.std() == pytest.approx(1.2, abs=0.05)
    index = np.asarray(Discrete(steps=10)(key, n, Rectified())) * 10
    np.testing.assert_allclose(np.unique(index.round(5)), np.arange(1, 11), atol=1e-5)


@pytest.mark.parametrize("predicts", ["v", "velocity", "x0"])
@pytest.mark.parametrize("path", [Cosine(), Rectified()], ids=str)
def test_weights_are_finite_at_both_ends_of_a_path(path, predicts):
    ends = jnp.asarray([path.t_min, 1.0])
    for weighting in (MinSNR(), P2(), Sigmoid(), EDMWeighting(), Likelihood()):
        assert np.isfinite(weighting(denoiser(path, predicts), ends)).all(), weighting


def test_no_time_is_later_than_the_sampler_asks():
    """ε on a path of zero terminal SNR: t = 1, which the discrete draw holds, would weigh 0 by ∞."""
    model = denoiser(Cosine(), "eps")
    batch = {"x": mixture(jax.random.key(0), 64)}
    loss = Denoising(times=Discrete(steps=2), weighting=MinSNR())
    value = loss(model, jax.jit(model.init)(jax.random.key(1), batch), jax.random.key(2), batch, STEP).value
    assert np.isfinite(value).all()


def test_low_discrepancy_and_antithetic_draws(key):
    t = np.sort(UniformTimes(draw="low_discrepancy")(key, 100, Rectified()))
    np.testing.assert_allclose(np.diff(t), 0.01, atol=1e-5)  # one in every hundredth
    t = np.asarray(UniformTimes(draw="antithetic")(key, 101, Rectified()))
    np.testing.assert_allclose(t[:50] + t[51:], 1.0, atol=1e-4)
