"""Solvers on a mixture whose denoiser is exact: identities, order of convergence, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.model import Model
from paths.grids import Explicit, Uniform
from paths.schedules import VE, VP, Cosine, DDPMLinear, Rectified
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from samplers.diffusion import Diffusion, solve
from samplers.multistep import Multistep, Table
from samplers.sampler import NoSampler, sample_keys
from samplers.transforms import Clip, Network
from tests.conftest import tiers
from tests.exact import PATHS, denoise, exact

KEYS = sample_keys(jax.random.key(7), jnp.arange(64))


def draw(model, sampler, keys=KEYS, **kwargs):
    return sampler(model, {"params": {}, "state": {}}, keys, None, (2,), **kwargs)


@pytest.mark.parametrize("path", tiers(PATHS, first=("vp", "ddpm_linear", "rectified")))
def test_ddim_of_eta_1_is_ddpm_of_the_smaller_variance(path):
    """On the full grid: the same table to 1e-9."""
    steps = 1000 if isinstance(path, DDPMLinear) else 200
    knots = Uniform().knots(path, steps)
    ours, papers = DDIM(eta=1.0).table(path, knots), DDPM(variance="beta_tilde").table(path, knots)
    for mine, theirs in zip(ours[:3], papers[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-9 * max(1.0, knots.sigma[0]))


def test_ddpm_table_is_the_papers_on_the_full_grid():
    """2006.11239 eq. 6-7 from β alone; both variances; no noise at the last step."""
    path = DDPMLinear()
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    previous = np.append(1.0, alpha_bar[:-1])
    knots = Uniform().knots(path, 1000)
    table = DDPM(variance="beta_tilde").table(path, knots)
    np.testing.assert_allclose(table.B[::-1, 0], np.sqrt(previous) * betas / (1 - alpha_bar), rtol=1e-7)
    np.testing.assert_allclose(table.A[::-1], np.sqrt(1 - betas) * (1 - previous) / (1 - alpha_bar), atol=1e-9)
    np.testing.assert_allclose(table.S[::-1] ** 2, betas * (1 - previous) / (1 - alpha_bar), atol=1e-10)
    larger = DDPM(variance="beta").table(path, knots).S[::-1] ** 2
    np.testing.assert_allclose(larger[1:], betas[1:], rtol=1e-7)
    assert larger[0] == 0.0


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_one_ddim_step_returns_the_denoised_prior(path):
    model = exact(path)
    result = draw(model, Diffusion(solver=DDIM(), steps=1), trajectory=True)
    assert result.trajectory.shape == (2, 64, 2)
    start = result.trajectory[0]
    assert float(start.std()) == pytest.approx(float(path.sigma(1.0)), rel=0.15)
    np.testing.assert_allclose(result.x, denoise(path, start, jnp.ones(64)), atol=1e-5)


def test_ddim_of_eta_0_draws_no_noise():
    """A deterministic solver has no row of noise to scale."""
    model, sampler = exact(VP()), Diffusion(solver=DDIM(eta=0.0), steps=20)
    knots = Uniform().knots(VP(), 20)
    assert "S" not in DDIM(eta=0.0).rows(VP(), knots)
    assert "S" in DDIM(eta=0.5).rows(VP(), knots)
    noisy = Diffusion(solver=DDIM(eta=1.0), steps=20)
    assert float(jnp.abs(draw(model, noisy).x - draw(model, sampler).x).max()) > 0.1


@pytest.mark.parametrize("solver", [DDIM(eta=0.0), DDPM()], ids=str)
def test_a_sample_depends_on_its_key_alone(solver):
    """Alone, in a batch of 64, over 8 devices: equal to 1e-5 (XLA may order a sum differently)."""
    model, sampler = exact(VP()), Diffusion(solver=solver, steps=20)
    together, alone = draw(model, sampler).x, jax.jit(lambda keys: draw(model, sampler, keys).x)
    for i in (0, 17, 63):
        np.testing.assert_allclose(alone(KEYS[i : i + 1])[0], together[i], atol=1e-5)
    np.testing.assert_allclose(draw(model, sampler, KEYS[::-1]).x[::-1], together, atol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = jax.jit(lambda keys: draw(model, sampler, keys).x, in_shardings=split, out_shardings=split)(KEYS)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, together, atol=1e-5)


@pytest.mark.parametrize(
    "path", tiers({"vp": VP(), "ve": VE(), "cosine": Cosine(), "rectified": Rectified()}, first=("vp", "rectified"))
)
def test_every_face_draws_the_same_samples(path):
    """One exact denoiser said as x0, eps, v, velocity and score; from t = 0.99, where all of them are defined."""
    sampler = Diffusion(solver=DDIM(), grid=Uniform(start=0.99), steps=25)
    reference = draw(exact(path, "x0"), sampler).x
    for predicts in ("eps", "v", "velocity", "score", "edm"):
        model = exact(path, predicts)
        times = tuple(Uniform(start=0.99).knots(path, 25).t[:-1].tolist())
        same_times = Diffusion(solver=DDIM(), grid=Explicit(at=times), steps=25)
        np.testing.assert_allclose(draw(model, same_times).x, reference, atol=2e-3, err_msg=predicts)


def test_trajectory_is_kept_only_when_asked_for():
    model, sampler = exact(VP()), Diffusion(steps=30)
    plain, traced = draw(model, sampler), draw(model, sampler, trajectory=True)
    assert plain.trajectory is None
    np.testing.assert_allclose(traced.trajectory[-1], traced.x)
    np.testing.assert_allclose(traced.x, plain.x, atol=1e-6)

    def temporary(steps):
        sampler = Diffusion(steps=steps)
        lowered = jax.jit(lambda keys: draw(model, sampler, keys).x).lower(KEYS)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(1000) < temporary(10) + 100_000  # a kept state would be 512 bytes a step


def test_multistep_history_is_what_the_network_said_before():
    """Adams-Bashforth weights over x̂₀ = t: the table's B multiplies the estimates of this and the last two steps."""

    class Recorder(Multistep):
        def table(self, path, knots):
            steps = knots.steps
            return Table(np.zeros(steps), np.tile([1.0, 10.0, 100.0], (steps, 1)), np.zeros(steps))

    times = (0.9, 0.7, 0.4, 0.2, 0.1)
    knots = Explicit(at=times).knots(Rectified(), 5)
    said = lambda x, t: jnp.broadcast_to(t, x.shape)  # noqa: E731
    states = solve(Recorder(), said, Rectified(), knots, KEYS[:2], (2,), trajectory=True).trajectory[:, 0, 0]
    np.testing.assert_allclose(states[3], 0.4 + 10 * 0.7 + 100 * 0.9, rtol=1e-6)
    np.testing.assert_allclose(states[4], 0.2 + 10 * 0.4 + 100 * 0.7, rtol=1e-6)
    np.testing.assert_allclose(states[5], 0.1, rtol=1e-6)  # the step onto data returns the estimate itself


def test_stochastic_and_deterministic_samples_have_the_mixtures_moments():
    keys = sample_keys(jax.random.key(3), jnp.arange(4000))
    from tests.exact import MEANS, STD, WEIGHTS

    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ MEANS**2 + STD**2 - mean**2
    for solver in (DDIM(eta=0.0), DDIM(eta=0.5), DDPM(), DDPM(variance="beta")):
        x = np.asarray(draw(exact(VP()), Diffusion(solver=solver, steps=250), keys).x)
        np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
        np.testing.assert_allclose(x.var(0), variance, rtol=0.1)


def test_clip_acts_on_the_estimate():
    network = Network(model=exact(VP()), variables={}, condition=None)
    clipped = Clip(low=-0.5, high=0.5)(lambda x, t: x, network)
    np.testing.assert_allclose(clipped(jnp.asarray([[-2.0, 0.3]]), 0.0), [[-0.5, 0.3]])
    sampler = Diffusion(steps=10, transforms=(Clip(low=-0.1, high=0.1),))
    assert sampler.network_calls() == 10
    x = draw(exact(VP()), sampler).x
    assert float(jnp.abs(x).max()) <= 0.1 + 1e-6


def test_a_model_of_another_family_is_refused():
    class Other(Model):
        def init(self, key, batch):
            return {"params": {}, "state": {}}

    with pytest.raises(TypeError, match="the diffusion sampler needs a Denoiser, got Other"):
        draw(Other(), Diffusion())
    with pytest.raises(ValueError, match="Other draws no samples"):
        draw(Other(), NoSampler())
