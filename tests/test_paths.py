"""Paths, faces and grids against their papers' formulas and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths.couplings import Independent
from paths.grids import Cosine as CosineGrid
from paths.grids import Explicit, Karras, Quadratic, Uniform, UniformLogSNR
from paths.predictions import NEEDS_SIGNAL, face, latest_time
from paths.schedules import EDM, VE, VP, Cosine, DDPMLinear, Rectified, SubVP
from tests.exact import PATHS

FACES = ("eps", "x0", "v", "velocity", "score", "edm")
T = np.linspace(0.01, 0.99, 37)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_float32_on_the_device_agrees_with_float64_on_the_host(path):
    t = np.concatenate([[1e-4, 1e-3], T])
    for function in (path.alpha, path.sigma):
        assert function(t).dtype == np.float64
        np.testing.assert_allclose(function(jnp.asarray(t, jnp.float32)), function(t), rtol=2e-5)


@pytest.mark.parametrize("path", [Cosine(), DDPMLinear(), Rectified(), VP()], ids=str)
def test_derivatives_hold_at_the_noise_end(path):
    """Where samplers start: a derivative of 0 or of half its size there would spoil the velocity face's first step."""
    one_sided = [(f(1.0) - f(1.0 - 1e-6)) / 1e-6 for f in (path.alpha, path.sigma)]
    np.testing.assert_allclose(path.derivatives(np.asarray(1.0)), one_sided, rtol=1e-3, atol=1e-4)
    on_device = [float(d) for d in path.derivatives(jnp.ones(()))]
    np.testing.assert_allclose(on_device, one_sided, rtol=1e-3, atol=1e-4)


def test_papers_values():
    assert VP().alpha(1.0) == pytest.approx(np.exp(-0.25 * 19.9 - 0.05))
    np.testing.assert_allclose(VP().alpha(T) ** 2 + VP().sigma(T) ** 2, 1.0)
    np.testing.assert_allclose(SubVP().sigma(T), 1 - VP().alpha(T) ** 2)
    assert (VE().sigma(0.0), VE().sigma(1.0)) == (pytest.approx(0.01), pytest.approx(50.0))
    assert (EDM().sigma(0.0), EDM().sigma(1.0)) == (pytest.approx(0.002), pytest.approx(80.0))
    np.testing.assert_allclose(Cosine().alpha(T) ** 2 + Cosine().sigma(T) ** 2, 1.0)
    np.testing.assert_allclose(Rectified(sigma_min=0.1).sigma(T), 1 - 0.9 * (1 - T))


def test_discrete_and_continuous_ddpm_agree_at_the_grid_points():
    """√ᾱ_i from the paper's own product, against α(i/T): 1e-6 in float32, 1e-12 in float64."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    t = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(DDPMLinear().alpha(t), np.sqrt(alpha_bar), rtol=1e-12)
    np.testing.assert_allclose(DDPMLinear().sigma(t), np.sqrt(1 - alpha_bar), rtol=1e-10)
    on_device = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(DDPMLinear().alpha(on_device), np.sqrt(alpha_bar), atol=1e-6)
    np.testing.assert_allclose(DDPMLinear().sigma(on_device), np.sqrt(1 - alpha_bar), atol=1e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_derivatives_equal_finite_differences(path):
    t = (np.arange(40) + 0.5) / 40 if isinstance(path, DDPMLinear) else T  # off the kinks of the interpolation
    t = t + (2e-4 if isinstance(path, DDPMLinear) else 0.0)
    step = 1e-6
    for derivative, function in zip(path.derivatives(t), (path.alpha, path.sigma), strict=True):
        numeric = (function(t + step) - function(t - step)) / (2 * step)
        np.testing.assert_allclose(derivative, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), Cosine()], ids=str)
def test_drift_and_diffusion_transport_the_moments(path):
    """d/dt α = fα and d/dt σ² = 2fσ² + g²: the SDE (3) has the path's mean and variance. VP's own β(t) as well."""
    alpha_dot, sigma_dot = path.derivatives(T)
    f, g2, sigma = path.drift(T), path.diffusion_squared(T), path.sigma(T)
    np.testing.assert_allclose(f * path.alpha(T), alpha_dot, rtol=1e-10)
    np.testing.assert_allclose(2 * f * sigma**2 + g2, 2 * sigma * sigma_dot, rtol=1e-8)
    beta = 0.1 + T * 19.9
    if isinstance(path, VE):  # 2011.13456 eq. 30
        np.testing.assert_allclose(g2, 2 * sigma**2 * np.log(5000.0), rtol=1e-8)
    if isinstance(path, Cosine):  # β(t) = −2·d log α/dt
        angle = np.pi / 2 * (T + 0.008) / 1.008
        np.testing.assert_allclose(g2, np.pi / 1.008 * np.tan(angle), rtol=1e-8)
    if isinstance(path, VP) and not isinstance(path, SubVP):
        np.testing.assert_allclose(g2, beta, rtol=1e-8)
    if isinstance(path, SubVP):
        np.testing.assert_allclose(g2, beta * (1 - np.exp(-2 * (0.1 * T + 19.9 * T**2 / 2))), rtol=1e-8)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_log_snr_falls_and_is_inverted(path):
    log_snr = path.log_snr(T)
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(path.time_of_log_snr(log_snr), T, atol=1e-12)
    np.testing.assert_allclose(path.time_of_log_snr(jnp.asarray(log_snr, jnp.float32)), T, atol=2e-5)


@pytest.mark.parametrize("predicts", FACES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_every_face_gives_back_the_data(path, predicts):
    """x̂₀ = c_skip·xₜ + c_out·(p·x₀ + q·ε) = x₀, for any x₀ and ε."""
    x0, eps = np.random.RandomState(0).randn(2, len(T))
    row = face(predicts, path, T, sigma_data=0.7)
    xt = path.alpha(T) * x0 + path.sigma(T) * eps
    np.testing.assert_allclose(row.c_skip * xt + row.c_out * (row.p * x0 + row.q * eps), x0, atol=1e-9)


@given(sigma=st.floats(0.01, 80), sigma_data=st.floats(0.1, 2.0))
@settings(max_examples=50, deadline=None)
def test_edm_face_is_the_papers(sigma, sigma_data):
    t = np.asarray((sigma - 0.002) / (80 - 0.002))
    row = face("edm", EDM(), t, sigma_data)
    total = sigma**2 + sigma_data**2
    assert row.c_skip == pytest.approx(sigma_data**2 / total)
    assert row.c_out == pytest.approx(sigma * sigma_data / np.sqrt(total))
    assert row.c_in == pytest.approx(1 / np.sqrt(total))
    assert row.c_noise == pytest.approx(np.log(sigma) / 4)
    # the target has unit variance when the data has variance σ_d²
    assert row.p**2 * sigma_data**2 + row.q**2 == pytest.approx(1.0)


def test_rectified_velocity_is_noise_minus_data():
    row = face("velocity", Rectified(), T)
    np.testing.assert_allclose(row.p, -1.0)
    np.testing.assert_allclose(row.q, 1.0)
    np.testing.assert_allclose(row.c_skip, 1.0)
    np.testing.assert_allclose(row.c_out, -T)


def test_unknown_face_is_named():
    with pytest.raises(ValueError, match=r"unknown prediction 'noise'; allowed are eps, x0"):
        face("noise", VP(), T)  # pyright: ignore


@pytest.mark.parametrize(
    "build",
    [
        lambda: VP(beta_min=-0.1),
        lambda: SubVP(beta_min=3.0, beta_max=2.0),
        lambda: VE(sigma_min=0.0),
        lambda: EDM(sigma_min=2.0, sigma_max=1.0),
        lambda: Cosine(s=-0.1),
        lambda: Rectified(sigma_min=1.0),
        lambda: DDPMLinear(beta_start=0.0),
        lambda: Karras(rho=0.0),
        lambda: Karras(sigma_min=2.0, sigma_max=1.0),
    ],
)
def test_levels_that_would_not_rise_are_refused(build):
    with pytest.raises(ValueError, match=r"got|must be|is not in"):
        build()


def test_faces_that_divide_by_alpha_stop_short_of_zero_terminal_snr():
    for predicts in FACES:
        limit = latest_time(predicts, Rectified())
        assert (limit < 1) == (predicts in NEEDS_SIGNAL)
        row = face(predicts, Rectified(), np.asarray(limit))
        assert np.isfinite([row.c_in, row.c_noise, row.c_skip, row.c_out]).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("grid", [Uniform(), Quadratic(), CosineGrid(), Karras(), UniformLogSNR()], ids=str)
def test_grids_fall_from_noise_to_clean_data_in_exactly_n_steps(grid, path, steps):
    knots = grid.knots(path, steps)
    assert knots.steps == steps
    assert len(knots.t) == steps + 1
    assert knots.t.dtype == np.float64
    assert np.all(np.diff(knots.sigma) < 0)
    assert knots.sigma[-1] == 0.0
    assert knots.alpha[-1] == pytest.approx(1.0)
    if isinstance(grid, Uniform | Quadratic):
        assert knots.t[0] == 1.0


def test_karras_levels_are_edms():
    """2206.00364 eq. 5 with ρ = 7, N = 18, on EDM's own path."""
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(Karras().knots(EDM(), 18).sigma[:-1], expected, rtol=1e-6)


def test_uniform_log_snr_is_uniform():
    knots = UniformLogSNR().knots(VP(), 20)
    np.testing.assert_allclose(np.diff(VP().log_snr(knots.t[:-1]), 2), 0.0, atol=1e-8)


def test_discrete_grids_use_every_step_once_and_no_more():
    path = DDPMLinear(steps=100)
    np.testing.assert_allclose(Uniform().knots(path, 100).t, np.arange(100, -1, -1) / 100)
    np.testing.assert_allclose(Uniform().knots(path, 10).t[:-1] * 100, np.arange(100, 0, -10))
    crowded = Quadratic().knots(path, 50).t[:-1] * 100
    assert np.all(np.diff(crowded) <= -1 + 1e-9)
    np.testing.assert_allclose(crowded, crowded.round())
    with pytest.raises(ValueError, match="at most as many steps"):
        Uniform().knots(path, 101)
    with pytest.raises(ValueError, match="at least 1 step"):
        Uniform().knots(path, 0)
    tau = (0.9, 0.5, 0.07)
    np.testing.assert_allclose(Explicit(at=tau).knots(path, 3).t[:-1], tau)
    with pytest.raises(ValueError, match="holds 3 times"):
        Explicit(at=tau).knots(path, 4)


def test_independent_coupling_is_standard_normal(key):
    noise = Independent().noise(key, {"x": jnp.zeros((4096, 3))})
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03
    assert not np.array_equal(noise, Independent().noise(jax.random.key(1), {"x": jnp.zeros((4096, 3))}))
