"""Jumps: every few-step objective has the exact flow of a Gaussian as its fixed point, and the sampler follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.consistency import ConsistencyDistillation, ConsistencyTraining
from losses.meanflow import MeanFlow
from losses.shortcut import Shortcut
from losses.times import Uniform as UniformTimes
from models.denoiser import Denoiser
from models.jump import Jump
from models.mlp import MLP
from paths.path import expand
from paths.schedules import VP, Cosine, Rectified
from samplers.diffusion import Diffusion, first_noise
from samplers.heun import Heun
from samplers.jumps import Jumps
from samplers.sampler import sample_keys
from tests.conftest import tiers
from tests.test_models import perturbed

C = 0.4  # standard deviation of the data, N(0, C²)
STEP = jnp.zeros((), jnp.int32)
KEYS = sample_keys(jax.random.key(3), jnp.arange(2000))
NET = MLP(width=16, depth=2)


def std(path, t):
    return jnp.sqrt((C * path.alpha(t)) ** 2 + path.sigma(t) ** 2)


class Exact(Jump):
    """The exact flow map x_s = xₜ·std_s/stdₜ on the rectified path as a mean velocity, times 1 + params."""

    def raw(self, variables, x, t, condition=None, dropout=None, s=None):
        s = t if s is None else s
        same = jnp.abs(t - s) < 1e-6
        safe = jnp.where(same, t - 0.5, s)
        mean = (1.0 - std(self.path, safe) / std(self.path, t)) / (t - safe)
        now = (t - C**2 * (1.0 - t)) / std(self.path, t) ** 2
        return (1.0 + variables["params"]) * expand(jnp.where(same, now, mean), x) * x


class ExactDenoiser(Denoiser):
    """E[x₀ | xₜ] = αC²/(α²C² + σ²)·x."""

    def raw(self, variables, x, t, condition=None, dropout=None):
        gain = self.path.alpha(t) * C**2 / std(self.path, t) ** 2
        return expand(gain, x) * x


def model(**settings):
    return Exact(net=NET, path=Rectified(), predicts="velocity", **settings)


def variables(scale=0.0):
    return {"params": jnp.asarray(scale), "state": {"teacher": {}}}


def data(n):
    return {"x": C * jax.random.normal(jax.random.key(0), (n, 2))}


def slope(loss, scale):
    """Gradient in the scale of U, its mean and standard error over batches."""

    def value(scale, key):
        return jnp.mean(loss(model(), variables(scale), key, data(2000), STEP).value)

    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(jnp.asarray(scale), jax.random.split(jax.random.key(1), 40))
    return float(found.mean()), float(found.std() / np.sqrt(len(found)))


@pytest.mark.parametrize("instantaneous", [0.0, 0.5])
def test_meanflow_is_at_rest_at_the_exact_mean_velocity(instantaneous):
    loss = MeanFlow(power=0.0, times=UniformTimes(), instantaneous=instantaneous)
    rest, error = slope(loss, 0.0)
    assert abs(rest) < 4 * error
    pull, error = slope(loss, 0.2)
    assert pull > 8 * error  # downhill is back to the exact one
    pull, error = slope(loss, -0.2)
    assert pull < -8 * error


def test_meanflow_weights_only_rescale():
    plain, weighted = (
        MeanFlow(power=p, offset=0.1)(model(), variables(0.3), jax.random.key(0), data(64), STEP) for p in (0.0, 0.5)
    )
    np.testing.assert_allclose(weighted.value, plain.value / np.sqrt(plain.value + 0.1), rtol=1e-5)


def test_shortcut_is_at_rest_at_the_exact_mean_velocity():
    """Two jumps of half the length are the exact jump: no residual but at the smallest, read from the velocity."""
    loss = Shortcut(levels=7, bootstrapped=1.0 - 1e-7)
    at_rest = loss(model(), variables(0.0), jax.random.key(0), data(500), STEP).value
    assert float(jnp.median(at_rest)) < 1e-10
    assert float(at_rest.max()) < 1e-3
    off = loss(model(), variables(0.2), jax.random.key(0), data(500), STEP).value
    assert float(jnp.median(off)) > 1e4 * float(jnp.median(at_rest))
    rest, error = slope(Shortcut(bootstrapped=1e-7), 0.0)  # and flow matching on the rest
    assert abs(rest) < 4 * error
    assert slope(Shortcut(bootstrapped=1e-7), 0.2)[0] > 8 * error


def test_consistency_distillation_is_at_rest_with_an_exact_teacher():
    teacher = ExactDenoiser(net=NET, path=Rectified(), predicts="x0")
    loss = ConsistencyDistillation(first=160, last=160)
    distance = lambda scale: float(  # noqa: E731
        loss(model(teacher=teacher), variables(scale), jax.random.key(0), data(1000), STEP).metrics["distance"].mean()
    )
    assert distance(0.0) < 1e-5
    assert distance(0.3) > 20 * distance(0.0)


def test_consistency_training_pulls_towards_the_exact_end():
    """2303.01469 theorem 2 holds for small steps: a grid of 160."""
    loss = ConsistencyTraining(first=160, last=160, huber=10.0)  # a wide Huber is a square, whose mean it is at rest in
    rest, error = slope(loss, 0.0)
    up, down = slope(loss, 0.3)[0], slope(loss, -0.3)[0]
    assert abs(rest) < max(4 * error, 0.1 * min(up, -down))
    assert up > 0 > down


def test_the_grid_of_consistency_doubles():
    loss = ConsistencyTraining(first=10, last=65, doubling=100)
    steps = [0, 99, 100, 250, 299, 300, 1000]
    assert [float(loss.intervals(jnp.asarray(s))) for s in steps] == [10, 10, 20, 40, 40, 65, 65]


def test_distillation_wants_a_teacher_on_the_same_path():
    with pytest.raises(ValueError, match="consistency distillation needs"):
        ConsistencyDistillation()(model(), variables(), jax.random.key(0), data(4), STEP)
    other = ExactDenoiser(net=NET, path=VP(), predicts="x0")
    with pytest.raises(ValueError, match="on the model's own path"):
        ConsistencyDistillation()(model(teacher=other), variables(), jax.random.key(0), data(4), STEP)


def test_what_has_no_end_or_no_start_is_refused():
    """x̂₀ = F may be any constant, which is at rest; an eps teacher says nothing at t = 1."""
    collapsing = Jump(net=NET, path=Rectified(), predicts="x0")
    with pytest.raises(ValueError, match="is the identity at t_min"):
        ConsistencyTraining()(collapsing, variables(), jax.random.key(0), data(4), STEP)
    blind = Denoiser(net=NET, path=Rectified(), predicts="eps")
    with pytest.raises(ValueError, match="the teacher predicts eps and cannot be asked above"):
        ConsistencyDistillation()(model(teacher=blind), variables(), jax.random.key(0), data(4), STEP)


@pytest.mark.parametrize("predicts", tiers(["velocity", "v", "edm"], first=("v",)))
def test_onto_data_every_face_is_finite(predicts):
    jump = Jump(net=NET, path=Cosine(), predicts=predicts)
    x = jax.random.normal(jax.random.key(0), (8, 2))
    params = {"params": perturbed(jump.init(jax.random.key(1), {"x": x})["params"]), "state": {}}
    t, zero = jnp.linspace(0.1, 0.9, 8), jnp.zeros(8)
    assert bool(jnp.isfinite(jump.jump(params, x, t, zero)).all())


@pytest.mark.parametrize("loss", [MeanFlow(), Shortcut()], ids=["meanflow", "shortcut"])
def test_mean_velocities_want_the_rectified_path(loss):
    for wrong in (
        Jump(net=NET, path=VP(), predicts="velocity"),
        Jump(net=NET, path=Rectified(), predicts="eps"),
        Denoiser(net=NET, path=Rectified(), predicts="velocity"),
    ):
        with pytest.raises(ValueError, match="trains a Jump on the rectified path that predicts velocity"):
            loss(wrong, {}, jax.random.key(0), data(4), STEP)


@pytest.mark.parametrize("path", [Rectified(), Cosine(), VP()], ids=["rectified", "cosine", "vp"])
def test_a_jump_of_no_length_is_the_identity_and_one_onto_data_is_the_estimate(path):
    jump = Jump(net=NET, path=path, predicts="v")
    x = jax.random.normal(jax.random.key(0), (8, 2))
    params = jump.init(jax.random.key(1), {"x": x})
    params = {"params": perturbed(params["params"]), "state": {}}
    t = jnp.linspace(0.1, 0.9, 8)
    np.testing.assert_allclose(jump.jump(params, x, t, t), x, atol=1e-5)
    onto = jump.jump(params, x, t, jnp.zeros(8))
    np.testing.assert_allclose(onto, jump.data(params, x, t, jnp.zeros(8)), atol=2e-3)
    assert np.abs(jump.data(params, x, t, jnp.zeros(8)) - jump.denoise(params, x, t)).max() > 1e-3  # s is heard


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_jumps_by_the_exact_flow_end_where_the_ode_ends(steps):
    sampler = Jumps(steps=steps)
    drawn = jax.jit(lambda k: sampler(model(), variables(), k, None, (2,), trajectory=True))(KEYS[:64])
    noise = np.asarray(first_noise(KEYS[:64], (2,)))
    np.testing.assert_allclose(drawn.x, C * noise, atol=1e-4)
    assert drawn.trajectory.shape == (steps + 1, 64, 2)
    for state, t in zip(drawn.trajectory, np.linspace(1.0, 0.0, steps + 1), strict=True):
        np.testing.assert_allclose(state, float(std(Rectified(), t)) * noise, atol=1e-4)
    assert sampler.network_calls() == steps


def test_renoising_keeps_the_distribution_and_draws_new_noise():
    samplers = [Jumps(steps=steps, renoise=True) for steps in (1, 4)]
    drawn = [np.asarray(jax.jit(lambda k, s=s: s(model(), variables(), k, None, (2,)).x)(KEYS)) for s in samplers]
    for x in drawn:
        np.testing.assert_allclose(x.std(0), C, rtol=0.05)
    np.testing.assert_allclose(drawn[0], C * np.asarray(first_noise(KEYS, (2,))), atol=1e-4)
    assert abs(np.corrcoef(drawn[0][:, 0], drawn[1][:, 0])[0, 1]) < 0.2


def test_a_jump_is_a_denoiser_too():
    """Its output at s = t is the velocity: any solver draws from it."""
    sampler = Diffusion(solver=Heun(), steps=100)
    x = jax.jit(lambda k: sampler(model(), variables(), k, None, (2,)).x)(KEYS[:64])
    np.testing.assert_allclose(x, C * np.asarray(first_noise(KEYS[:64], (2,))), atol=1e-2)


def test_samples_do_not_depend_on_their_batch():
    for sampler in (Jumps(steps=3), Jumps(steps=3, renoise=True)):
        draw = jax.jit(lambda k, s=sampler: s(model(), variables(), k, None, (2,)).x)
        np.testing.assert_allclose(draw(KEYS[:8])[:3], draw(KEYS[:3]), atol=1e-6)


def test_only_a_jump_jumps():
    with pytest.raises(TypeError, match="needs a Jump, got Denoiser"):
        Jumps()(Denoiser(net=NET, path=Rectified()), {}, KEYS, None, (2,))
