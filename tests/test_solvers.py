"""All solvers on all paths through all faces: finite, convergent to one distribution, or refused with the reason."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paths.grids import Leading, Shifted, Uniform, UniformLogSNR
from paths.predictions import face
from paths.schedules import VP, Cosine, Rectified
from samplers import kernel, measure
from samplers.adaptive import Dopri5, Tsit5
from samplers.catalogue import calls, listing, solvers
from samplers.check import PATHS
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from samplers.diffusion import Diffusion, solve
from samplers.edm import EDM
from samplers.langevin import Langevin, langevin, langevin_rows
from samplers.pc import PC
from samplers.plms import PLMS
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.reverse_sde import ReverseSDE
from samplers.sampler import sample_keys
from samplers.stochastic_heun import StochasticHeun
from samplers.targets import LINE, PLANE, Mixture
from samplers.transforms import Transform
from samplers.unipc import UniPC
from tests.conftest import tiers
from tests.exact import exact

FACES = ("eps", "x0", "v", "velocity", "score", "edm")
KEYS = sample_keys(jax.random.key(5), jnp.arange(16))
COUNT = 2000


def draw(model, sampler, keys=KEYS):
    return jax.jit(lambda keys: sampler(model, {"params": {}, "state": {}}, keys, None, (2,)).x)(keys)


def said_by_all_faces(path):
    """PLANE's denoiser; of six equal parts of the batch, each is what another face's network would say, read back."""

    def denoise(x, t):
        parts = []
        for predicts, part, x0 in zip(FACES, jnp.split(x, 6), jnp.split(PLANE.denoise(path)(x, t), 6), strict=True):
            row = face(predicts, path, t)
            eps = (part - path.alpha(t) * x0) / path.sigma(t)
            network = row.p * x0 + row.q * eps
            parts.append(row.c_skip * part + row.c_out * network)
        return jnp.concatenate(parts)

    return denoise


FIXED = [name for name in solvers() if name not in ("dopri5", "tsit5")]
# One of each kind: exponential, multistep, predictor and corrector, singlestep, stochastic.
FACED = ("ddim", "ddpm", "dpmpp_2m", "unipc", "plms", "deis", "edm", "heun", "pc", "reverse_sde", "sde_dpmpp_2m")


@pytest.mark.parametrize(
    ("name", "path"),  # every solver, and every path; both of tests/test_orders.py's are of every solver
    tiers(
        itertools.product(FIXED, PATHS),
        first=lambda name, path: path == "rectified" and name in FACED,
    ),
)
def test_every_face_is_finite_and_says_the_same(name, path):
    """10 and 50 steps, six faces, the same noise: all end together."""
    solver, path, keys = solvers()[name](), PATHS[path], jnp.concatenate([KEYS] * 6)
    denoise, grid = said_by_all_faces(path), UniformLogSNR(limit=12.0)

    def draw_all(keys):  # one program: compiling is all that this test costs
        return [solve(solver, denoise, path, grid.knots(path, steps), keys, (2,)).x for steps in (10, 50)]

    few, x = jax.jit(draw_all)(keys)
    assert bool(jnp.all(jnp.isfinite(few)))
    assert bool(jnp.all(jnp.isfinite(x)))
    ends = np.split(np.asarray(x), 6)
    for other in ends[1:]:
        assert np.median(np.abs(other - ends[0])) < 2e-3


@pytest.mark.thorough
@pytest.mark.parametrize("path", PATHS)
def test_deterministic_solvers_converge_to_the_exact_distribution(path):
    """200 steps: sliced Wasserstein to exact samples within 1.5 times of what two exact sets of that size differ by."""
    exact_sets = [np.asarray(PLANE.sample(jax.random.key(seed), COUNT)) for seed in range(1, 6)]
    first = exact_sets[0]
    chance = np.mean([measure.sliced_wasserstein(first, other) for other in exact_sets[1:]])
    for name, cls in solvers().items():
        if not cls().stochastic and name not in ("dopri5", "tsit5"):
            # Euler in the time of VE, log σ, is of first order with a large constant: 1.53 times in 200 steps.
            steps = 400 if (name, path) == ("euler", "ve") else 200
            distance = measure.sliced_wasserstein(measure.draw(cls(), PLANE, PATHS[path], steps, COUNT), first)
            assert distance < 1.5 * chance, (name, distance, chance)


@pytest.mark.parametrize(
    ("name", "path"),
    tiers(
        itertools.product(
            [n for n, cls in solvers().items() if not cls().stochastic and cls().stated_order], ["cosine", "rectified"]
        ),
        first=lambda name, path: path == "cosine",
    ),
)
def test_deterministic_solvers_start_where_alpha_is_zero(name, path):
    """Evenly spaced times from t = 1, where σ/α is infinite: 16 trajectories end where the ODE ends."""
    path = PATHS[path]
    knots = Uniform().knots(path, 100)
    assert knots.alpha[0] == 0.0
    with jax.enable_x64(True):
        x = jnp.asarray(LINE.quantile(path, measure.RANKS, 1.0))[:, None]
        run = jax.jit(lambda x: solvers()[name]().solve(LINE.denoise(path), path, knots, x, lambda i: lambda j=0: x).x)
        end = np.asarray(run(x))[:, 0]
    assert np.abs(end - LINE.quantile(path, measure.RANKS, 0.0)).mean() < 0.02


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_plms_is_the_published_loop(path):
    """2202.09778 as latent diffusion runs it, step by step, with its list of ε and its one call more."""
    path = PATHS[path]
    knots, D = measure.stretch(path, 8), LINE.denoise(path)
    with jax.enable_x64(True):
        x = jnp.asarray(LINE.quantile(path, measure.RANKS, float(knots.t[0])))[:, None]
        table = PLMS().solve(D, path, knots, x, lambda i: lambda j=0: x).x
        said = []

        def eps(x, i):
            return (x - knots.alpha[i] * D(x, jnp.asarray(knots.t[i]))) / knots.sigma[i]

        def transfer(x, i, e):
            change = knots.sigma[i + 1] / knots.alpha[i + 1] - knots.sigma[i] / knots.alpha[i]
            return knots.alpha[i + 1] * (x / knots.alpha[i] + change * e)

        for i in range(8):
            said.insert(0, eps(x, i))
            if i == 0:
                e = (said[0] + eps(transfer(x, 0, said[0]), 1)) / 2
            elif i == 1:
                e = (3 * said[0] - said[1]) / 2
            elif i == 2:
                e = (23 * said[0] - 16 * said[1] + 5 * said[2]) / 12
            else:
                e = (55 * said[0] - 59 * said[1] + 37 * said[2] - 9 * said[3]) / 24
            x = transfer(x, i, e)
        np.testing.assert_allclose(table, x, rtol=1e-9)


@pytest.mark.parametrize(
    ("path", "solver"), tiers(itertools.product(PATHS, (Dopri5(), Tsit5())), first=(("rectified", Tsit5()),)), ids=str
)
def test_adaptive_solvers_reach_the_exact_end_and_count_their_calls(solver, path):
    """To 1e-3 on the mixture; each sample its own calls, and alone it makes exactly those."""
    assert measure.strong_error(solver, PATHS[path], 10) < 1e-3
    knots, D, made = UniformLogSNR().knots(PATHS[path], 10), LINE.denoise(PATHS[path]), []

    def counting(x, t):
        jax.debug.callback(lambda: made.append(1))
        return D(x, t)

    # float64: at tolerances of 1e-5 the rounding of float32 decides which steps are rejected.
    with jax.enable_x64(True):
        together = jax.jit(lambda keys: solve(solver, D, PATHS[path], knots, keys, (1,)))(KEYS)
        alone = jax.jit(lambda keys: solve(solver, counting, PATHS[path], knots, keys, (1,)))(KEYS[:1])
        jax.block_until_ready(alone.x)
        jax.effects_barrier()
        tight = replace(solver, rtol=1e-10, atol=1e-10)
        exacter = jax.jit(lambda keys: solve(tight, D, PATHS[path], knots, keys, (1,)))(KEYS[:1])
    assert int(alone.nfe[0]) == len(made)
    assert int(together.nfe[0]) == len(made)
    assert len(set(together.nfe.tolist())) > 1
    np.testing.assert_allclose(together.x[0], alone.x[0], atol=1e-5)
    assert int(exacter.nfe[0]) > 1.5 * int(alone.nfe[0])  # a tolerance is asked for with calls


def test_an_adaptive_solver_keeps_each_samples_condition():
    """A denoiser whose estimate is its label: the ODE, before x̂₀ is taken, brings each sample to its own."""
    knots = Uniform().knots(Rectified(), 4)

    def run(labels):
        denoise = lambda x, t: labels[:, None] + 0 * x  # noqa: E731
        return solve(Dopri5(), denoise, Rectified(), knots, KEYS[:4], (2,), trajectory=True).trajectory[-2]

    labels = jnp.asarray([-1.0, 0.0, 2.0, 5.0])
    np.testing.assert_allclose(jax.jit(run)(labels), jnp.broadcast_to(labels[:, None], (4, 2)), atol=1e-3)


def test_impossible_cells_are_refused_with_the_reason():
    for path in (Rectified(), Cosine()):
        for solver in (ReverseSDE(), StochasticHeun()):
            with pytest.raises(ValueError, match=r"g is infinite on .* at t=1, where α = 0: start later"):
                draw(exact(path, "x0"), Diffusion(solver=solver, steps=10))
            alternative = type(solver)(diffusion="sigma")
            assert bool(jnp.all(jnp.isfinite(draw(exact(path, "x0"), Diffusion(solver=alternative, steps=10)))))
        with pytest.raises(ValueError, match=r"strength=0.0 does not converge from α = 0 \(t=1 on"):
            draw(exact(path, "x0"), Diffusion(solver=ReverseDiffusion(strength=0.0), steps=10))
    with pytest.raises(ValueError, match="takes more rows than steps and cannot be a predictor"):
        draw(exact(VP(), "x0"), Diffusion(solver=PC(predictor=PLMS()), steps=10))
    with pytest.raises(ValueError, match=r"t_end=0 must be below 1, and σ\(t_end\) above 0"):
        draw(exact(VP(), "x0"), Diffusion(solver=Dopri5(t_end=0.0)))
    for wrong in (lambda: DDIM(eta=0.5, hat=True), lambda: UniPC(order=4), lambda: EDM(s_churn=-1.0)):
        with pytest.raises(ValueError, match=r"=|is not"):
            wrong()


@pytest.mark.parametrize(
    "name", tiers(list(solvers()), first=("ddim", "ddpm", "dpmpp_2m", "unipc", "plms", "heun", "edm", "pc", "dopri5"))
)
def test_calls_counted_are_calls_stated(name):
    for steps in (1, 7):
        counted, stated = measure.counted_calls(solvers()[name](), VP(), steps)
        assert counted == stated


def test_a_doubled_batch_counts_twice():
    class Doubled(Transform):
        def calls(self, inner):
            return 2 * inner

        def __call__(self, denoise, network):
            return lambda x, t: jnp.split(denoise(jnp.concatenate([x, x]), t), 2)[0]

    sampler = Diffusion(solver=solvers()["heun"](), steps=5, transforms=(Doubled(),))
    assert sampler.network_calls() == 2 * 9
    assert Diffusion(solver=Dopri5(), transforms=(Doubled(),)).network_calls() is None


@pytest.mark.thorough
def test_pc_improves_on_its_predictor_and_keeps_samples_apart():
    """64-D Gaussian in 40 steps on VE: the deviations are nearer with the corrector than without."""
    target = Mixture(np.ones(1), np.zeros((1, 64)), np.full((1, 64), 0.5))
    off = []
    for solver in (PC(predictor=DDPM(), corrector_steps=0), PC(predictor=DDPM(), snr=0.1)):
        x = measure.draw(solver, target, PATHS["ve"], 40, 500)
        off.append(np.abs(x.std(0) / 0.5 - 1).mean())
    assert off[1] < off[0]
    assert measure.split_difference(PC(), VP()) < 1e-9


def test_langevin_is_the_papers_step_follows_the_noise_levels_and_keeps_samples_apart():
    """Algorithm 5's x + ε·s + √(2ε)·z by hand; alone it then brings a Gaussian from σ = 50 to data."""
    knots = Uniform().knots(VP(), 10).noisy
    row = {name: jnp.asarray(value[4]) for name, value in langevin_rows(knots).items()}
    x, z = (np.asarray(jax.random.normal(jax.random.key(seed), (4, 6))) for seed in (0, 1))
    moved = langevin(lambda x, t: 0.3 * x, jnp.asarray(x), row, [jnp.asarray(z)], 0.2)
    alpha, sigma = knots.alpha[5], knots.sigma[5]
    score = (alpha * 0.3 * x - x) / sigma**2
    ratio = np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(score, axis=1, keepdims=True)
    size = 2 * (knots.alpha[4] / alpha) ** 2 * (0.2 * ratio) ** 2
    np.testing.assert_allclose(moved, x + size * score + np.sqrt(2 * size) * z, rtol=1e-4)
    target = Mixture(np.ones(1), np.zeros((1, 64)), np.full((1, 64), 0.5))
    x = measure.draw(Langevin(snr=0.2, corrector_steps=2), target, PATHS["ve"], 400, 300)
    np.testing.assert_allclose(x.std(0), 0.5, rtol=0.2)
    assert measure.split_difference(Langevin(), VP()) < 1e-9
    for wrong in (lambda: Langevin(corrector_steps=0), lambda: Langevin(snr=0.0)):
        with pytest.raises(ValueError, match="corrector_steps="):
            wrong()


def test_noise_drawn_ahead_of_the_scan_is_the_noise_of_the_step(monkeypatch):
    """One and more noises a step: the same samples with the first drawn before the scan and with all drawn within."""
    for solver in (DDPM(), PC(), Langevin(corrector_steps=2)):
        knots = UniformLogSNR().knots(VP(), 10)
        ends = []
        for ahead in (2**20, 0):
            monkeypatch.setattr(kernel, "AHEAD", ahead)
            with jax.enable_x64(True):
                ends.append(jax.jit(lambda keys: solve(solver, PLANE.denoise(VP()), VP(), knots, keys, (2,)).x)(KEYS))  # noqa: B023
        np.testing.assert_allclose(ends[0], ends[1], atol=1e-10)


def test_shifted_grid_is_sd3s_on_the_rectified_path_and_stays_in_range_elsewhere():
    t = Uniform().times(Rectified(), 10, 1.0)
    np.testing.assert_allclose(Shifted(factor=3.0).times(Rectified(), 10, 1.0), 3 * t / (1 + 2 * t), rtol=1e-9)
    np.testing.assert_allclose(Shifted(factor=1.0).times(VP(), 10, 1.0), Uniform().times(VP(), 10, 1.0), rtol=1e-8)
    for path in PATHS.values():
        knots = Shifted(factor=4.0).knots(path, 20)
        assert knots.t[0] == 1.0
        assert np.all(np.diff(knots.t) < 0)
    with pytest.raises(ValueError, match="factor=0"):
        Shifted(factor=0.0)


def test_leading_grid_is_that_of_ddims_code():
    """τ = 1, 101, … 901 of 1,000 in 10 steps; all of them in 1,000."""
    path = PATHS["ddpm_linear"]
    np.testing.assert_allclose(Leading().knots(path, 10).t[:-1], np.arange(901, 0, -100) / 1000)
    np.testing.assert_allclose(Leading().knots(path, 1000).t[:-1], np.arange(1000, 0, -1) / 1000)


def test_the_catalogue_names_the_fields_names_and_says_what_they_cost():
    wanted = (
        "ddpm ddim ipndm plms deis dpmpp_1s dpmpp_2m dpmpp_3m sde_dpmpp_2m sde_dpmpp_3m unip unipc euler heun rk4 edm "
        "reverse_sde stochastic_heun pc dpm_2s dpm_3s dopri5 tsit5"
    )
    assert set(wanted.split()) <= set(solvers())
    costs = {name: calls(cls()) for name, cls in solvers().items()}
    assert (costs["dpmpp_2m"], costs["edm"], costs["plms"], costs["rk4"]) == ("N", "2N−1", "N+1", "4N−3")
    assert costs["dopri5"] == "adaptive"
    for name in wanted.split():
        assert f"\n{name} " in listing()
