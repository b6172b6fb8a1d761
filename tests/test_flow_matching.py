"""Flow matching: the regressed velocity against closed forms, couplings, straightness, Euler against DDIM."""

import itertools
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.flow_matching import FlowMatching
from losses.times import Point
from metrics.straightness import straightness_and_energy
from models.denoiser import Denoiser
from models.mlp import MLP
from paths.couplings import Independent, MinibatchOT, Pairs, Sinkhorn, squared_distances
from paths.path import expand
from paths.schedules import VP, Cosine, Rectified
from samplers.ddim import DDIM
from samplers.diffusion import Diffusion
from samplers.euler import Euler
from samplers.sampler import sample_keys
from samplers.targets import LINE, PLANE, Mixture
from tests.conftest import tiers
from tests.exact import exact

STEP = jnp.zeros((), jnp.int32)
GAUSSIAN = Mixture(np.ones(1), np.asarray([[0.7]]), np.asarray([[0.4]]))
KEYS = sample_keys(jax.random.key(3), jnp.arange(400))


class Affine(Denoiser):
    """u = a·x + b with parameters a and b."""

    def raw(self, variables, x, t, condition=None, dropout=None):
        return variables["params"][0] * x + variables["params"][1]


EDGES = np.linspace(-3.0, 3.0, 25)


class Binned(Denoiser):
    """u constant on each bin of the line."""

    def raw(self, variables, x, t, condition=None, dropout=None):
        return variables["params"][jnp.searchsorted(jnp.asarray(EDGES, x.dtype), x[:, 0])][:, None]


def regressed(model, loss, data, size):
    """The minimiser of a loss that is quadratic in few parameters: one Newton step from zero."""

    def value(params):
        variables = {"params": params, "state": {}}
        return jnp.mean(loss(model, variables, jax.random.key(1), {"x": data}, STEP).value)

    zero = jnp.zeros(size)
    hessian = jax.hessian(value)(zero)
    return np.asarray(-jnp.linalg.pinv(hessian) @ jax.grad(value)(zero)), np.asarray(jnp.diag(hessian)) / 2


def exact_velocity(target, path, x, t):
    alpha_dot, sigma_dot = path.derivatives(jnp.full(len(x), t))
    x0 = target.denoise(path)(x, jnp.asarray(t))
    eps = (x - path.alpha(t) * x0) / path.sigma(t)
    return expand(alpha_dot, x) * x0 + expand(sigma_dot, x) * eps


@pytest.mark.thorough
@pytest.mark.parametrize(("path", "t"), itertools.product((Rectified(), Cosine()), (0.2, 0.5, 0.8)), ids=str)
def test_the_velocity_between_gaussians_is_the_closed_form(path, t):
    """u is affine; its regression on n pairs has standard error below 0.02 in both numbers here."""
    data = GAUSSIAN.sample(jax.random.key(0), 200_000)
    model = Affine(net=MLP(), path=path, predicts="velocity")
    (a, b), _ = regressed(model, FlowMatching(times=Point(at=t)), data, 2)
    at = exact_velocity(GAUSSIAN, path, jnp.asarray([[0.0], [1.0]]), t)[:, 0]
    np.testing.assert_allclose([b, a + b], at, atol=0.03)


@pytest.mark.parametrize("spread", tiers([0.0, 0.5], first=(0.5,)))
def test_the_velocity_to_a_mixture_is_the_closed_form_bin_by_bin(spread):
    """Mean over a bin within five standard errors; the interpolant's noise widens xₜ and moves the mean with it."""
    t, n, path = 0.4, 400_000, Rectified()
    data = LINE.sample(jax.random.key(0), n)
    model = Binned(net=MLP(), path=path, predicts="velocity")
    values, share = regressed(model, FlowMatching(times=Point(at=t), spread=spread), data, len(EDGES) + 1)
    # The same bins under the law of xₜ: quadrature over a fine grid. With spread, z joins ε in one Gaussian of
    # variance t² + γ², and E[ẋ | x] = E[−x₀ + c·(x − αx₀) | x], c = (t + γγ̇)/(t² + γ²).
    gamma2, half_slope = spread**2 * t * (1 - t), spread**2 * (1 - 2 * t) / 2
    grid = np.linspace(-3.0, 3.0, 24 * 200 + 1)[:-1] + 3.0 / 4800
    std = np.sqrt((1 - t) ** 2 * LINE.stds[:, 0] ** 2 + t**2 + gamma2)
    density = LINE.weights * np.exp(-0.5 * ((grid[:, None] - (1 - t) * LINE.means[:, 0]) / std) ** 2) / std
    gain = (1 - t) * LINE.stds[:, 0] ** 2 / std**2
    x0 = LINE.means[:, 0] + gain * (grid[:, None] - (1 - t) * LINE.means[:, 0])
    x0 = (density * x0).sum(1) / density.sum(1)
    u = -x0 + (t + half_slope) / (t**2 + gamma2) * (grid - (1 - t) * x0)
    mass = density.sum(1).reshape(24, 200)
    expected = (mass * u.reshape(24, 200)).sum(1) / mass.sum(1)
    count = share[1:-1] * n
    often = count > 500
    assert often.sum() > 10
    np.testing.assert_array_less(np.abs(values[1:-1] - expected)[often], 5 * 2.0 / np.sqrt(count[often]))


def test_only_a_velocity_is_regressed():
    model = Denoiser(net=MLP(), path=Rectified(), predicts="eps")
    with pytest.raises(ValueError, match=r"flow matching regresses a velocity .* got eps"):
        FlowMatching()(model, {}, jax.random.key(0), {"x": jnp.zeros((2, 2))}, STEP)


def test_euler_on_the_rectified_path_is_ddim():
    model, path = exact(Rectified()), Rectified()
    assert model.path == path
    x = [
        jax.jit(lambda k, s=solver: Diffusion(solver=s, steps=20)(model, {}, k, None, (2,)).x)(KEYS)
        for solver in (Euler(), DDIM())
    ]
    np.testing.assert_allclose(x[0], x[1], atol=1e-5)
    other = exact(VP())
    x = [
        jax.jit(lambda k, s=solver: Diffusion(solver=s, steps=20)(other, {}, k, None, (2,)).x)(KEYS)
        for solver in (Euler(), DDIM())
    ]
    assert np.abs(x[0] - x[1]).max() > 1e-3  # elsewhere they differ


class Field(Denoiser):
    """A velocity given by a function of (x, t)."""

    def raw(self, variables, x, t, condition=None, dropout=None):
        return variables["params"](x, t)


def measured(field):
    model = Field(net=MLP(), path=Rectified(), predicts="velocity")
    S, K = straightness_and_energy(model, {"params": field, "state": {}}, KEYS, (2,), steps=400)
    return np.asarray(S), np.asarray(K)


def test_a_straight_coupling_has_straightness_0_and_a_bent_one_what_it_should():
    shift = jnp.asarray([3.0, -1.0])
    S, K = measured(lambda x, t: jnp.broadcast_to(shift, x.shape))
    np.testing.assert_allclose(S, 0.0, atol=1e-8)
    np.testing.assert_allclose(K, 10.0, rtol=1e-3)
    # u = 2π·(cos 2πt, −sin 2πt): a circle; Δ = 0, so all of its energy is bend
    circle = lambda x, t: 2 * np.pi * jnp.stack([jnp.cos(2 * np.pi * t), -jnp.sin(2 * np.pi * t)], 1)  # noqa: E731
    S, K = measured(circle)
    np.testing.assert_allclose(S, 4 * np.pi**2, rtol=1e-2)
    np.testing.assert_allclose(K, 4 * np.pi**2, rtol=1e-2)


def batch(n=64, labels=False):
    x = PLANE.sample(jax.random.key(0), n)
    return {"x": x} | ({"label": jnp.arange(n, dtype=jnp.int32) % 3} if labels else {})


def cost(x, eps):
    return float(jnp.mean(jnp.sum((x - eps) ** 2, axis=1)))


def test_the_assignment_is_the_best_of_all(key):
    data = batch(6)
    eps = MinibatchOT().noise(key, data)
    free = Independent().noise(key, data)
    best = min(cost(data["x"], free[jnp.asarray(order)]) for order in permutations(range(6)))
    assert cost(data["x"], eps) == pytest.approx(best, rel=1e-5)
    assert {tuple(row) for row in np.asarray(eps)} == {tuple(row) for row in np.asarray(free)}


def test_ot_lowers_the_energy_of_the_pairs_and_sinkhorn_comes_near():
    energies = {}
    for name, coupling in {"free": Independent(), "ot": MinibatchOT(), "sinkhorn": Sinkhorn()}.items():
        draw = jax.jit(coupling.noise)
        energies[name] = np.mean([cost(batch(128)["x"], draw(jax.random.key(i), batch(128))) for i in range(20)])
    assert energies["ot"] < 0.75 * energies["free"]
    assert energies["ot"] < energies["sinkhorn"] < 0.85 * energies["free"]


def test_sinkhorns_plan_has_the_marginals_and_tends_to_the_assignment(key):
    x, eps = batch(32)["x"], jax.random.normal(key, (32, 2))
    distances, all_pairs = squared_distances(x, eps), jnp.ones((32, 32), bool)
    plan = np.exp(Sinkhorn(reg=0.1, iterations=500).log_plan(distances, all_pairs))
    np.testing.assert_allclose(plan.sum(1), 1.0, atol=1e-4)
    np.testing.assert_allclose(plan.sum(0), 1.0, atol=1e-3)
    sharp = np.exp(Sinkhorn(reg=0.002, iterations=5000).log_plan(distances, all_pairs))
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(distances)
    best = float(np.asarray(distances)[rows, columns].sum())
    assert (sharp * np.asarray(distances)).sum() == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("coupling", [MinibatchOT(), Sinkhorn()], ids=["ot", "sinkhorn"])
def test_class_aware_couplings_never_pair_across_classes(coupling, key):
    """Noise i belongs to the class of example i, of which it is drawn without looking at the data."""
    data = batch(60, labels=True)
    noise_key = key if isinstance(coupling, MinibatchOT) else jax.random.split(key)[0]
    free = np.asarray(jax.random.normal(noise_key, (60, 2)))
    eps = np.asarray(coupling.noise(key, data))
    owner = np.asarray([int(np.flatnonzero((free == row).all(1))[0]) for row in eps])
    np.testing.assert_array_equal(owner % 3, np.arange(60) % 3)
    without = np.asarray(coupling.noise(key, {"x": data["x"]}))
    owner = np.asarray([int(np.flatnonzero((free == row).all(1))[0]) for row in without])
    assert (owner % 3 != np.arange(60) % 3).any()  # without labels it does


def test_couplings_keep_the_noise_of_each_class_standard_normal():
    for coupling in (MinibatchOT(), Sinkhorn()):
        noise = jax.jit(coupling.noise)
        drawn = [np.asarray(noise(jax.random.key(i), batch(120, labels=True))) for i in range(60)]
        for label in range(3):
            eps = np.concatenate([part[label::3] for part in drawn])
            np.testing.assert_allclose(eps.mean(0), 0.0, atol=0.08)
            np.testing.assert_allclose(eps.std(0), 1.0, atol=0.08)


@pytest.mark.thorough
def test_a_model_without_classes_is_given_the_assignment_of_the_whole_batch():
    """Labels in the data divide the noise only where the model is told them."""
    data = batch(60, labels=True)

    def value(classes, data):
        net = MLP(width=8, depth=1, num_classes=classes)
        model = Denoiser(net=net, path=Rectified(), predicts="velocity")
        variables = model.init(jax.random.key(1), data)
        loss = FlowMatching(coupling=MinibatchOT())
        return np.asarray(loss(model, variables, jax.random.key(2), data, STEP).value)

    np.testing.assert_array_equal(value(0, data), value(0, {"x": data["x"]}))
    assert np.abs(value(3, data) - value(0, data)).max() > 1e-3


def test_pairs_come_from_the_batch_or_are_asked_for(key):
    noise = jnp.ones((4, 2))
    assert Pairs().noise(key, {"x": jnp.zeros((4, 2)), "noise": noise}) is noise
    with pytest.raises(ValueError, match="needs data that brings its own noise"):
        Pairs().noise(key, {"x": jnp.zeros((4, 2))})


def test_the_exact_assignment_is_the_same_on_eight_devices(key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    data = batch(64, labels=True)
    whole = jax.jit(MinibatchOT().noise)(key, data)
    shared = jax.jit(MinibatchOT().noise)(key, jax.device_put(data, split))
    np.testing.assert_allclose(whole, shared, atol=1e-6)
