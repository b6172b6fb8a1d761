"""Integrators: order of convergence, both directions of time, exact counts, and no silent end in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers.integrators import Adaptive, FixedStep
from tests.conftest import tiers

FIXED = [FixedStep(method=method, steps=20) for method in ("euler", "heun", "rk4")]
ADAPTIVE = [Adaptive(method=method) for method in ("dopri5", "tsit5")]
ORDER = {"euler": 1, "heun": 2, "rk4": 4}


def swing(t, y):
    """A driven oscillator and its energy's integral, as a pytree: no step of it is free of error."""
    return {"x": y["v"], "v": -4.0 * y["x"] + jnp.cos(3.0 * t), "sum": jnp.sum(y["x"] ** 2)}


def start(t=0.0):
    """The state of the solution `exact_x` at t."""
    x, v = exact_x(t), (exact_x(t + 1e-5) - exact_x(t - 1e-5)) / 2e-5
    return {"x": jnp.asarray(x), "v": jnp.asarray(v), "sum": jnp.zeros((), jnp.result_type(float))}


def exact_x(t):
    """x of `swing` from x(0) = (1, −0.5, 0.2), v(0) = (0, 0.3, −1); the forced part is −cos(3t)/5."""
    x0, v0 = np.asarray([1.0, -0.5, 0.2]) + 0.2, np.asarray([0.0, 0.3, -1.0])
    return x0 * np.cos(2 * t) + v0 / 2 * np.sin(2 * t) - np.cos(3 * t) / 5


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["forward", "backward"])
@pytest.mark.parametrize("method", ORDER)
def test_fixed_steps_converge_at_their_order(method, ends):
    with jax.enable_x64(True):
        errors = []
        for steps in (40, 80, 160):
            solution = FixedStep(method=method, steps=steps)(swing, start(ends[0]), *ends)
            errors.append(np.abs(solution.y["x"] - exact_x(ends[1])).max())
        slopes = np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))
        np.testing.assert_allclose(slopes, ORDER[method], atol=0.15)


@pytest.mark.parametrize(
    ("integrator", "ends"),
    tiers({"dopri5": (ADAPTIVE[0], (0.0, 2.0)), "tsit5": (ADAPTIVE[1], (2.0, 0.0))}, first=("tsit5",)),
)
def test_adaptive_steps_keep_the_tolerance_on_the_way_and_at_the_end(integrator, ends):
    with jax.enable_x64(True):
        at = np.sort(np.asarray([0.0, 0.1, 0.77, 1.9]))[:: 1 if ends[0] < ends[1] else -1]
        calls = []
        for tolerance in (1e-5, 1e-8):
            tight = type(integrator)(method=integrator.method, rtol=tolerance, atol=tolerance)
            solution = tight(swing, start(ends[0]), *ends, save_at=at)
            np.testing.assert_allclose(solution.y["x"], exact_x(ends[1]), atol=20 * tolerance)
            np.testing.assert_allclose(solution.saved["x"], [exact_x(t) for t in at], atol=20 * tolerance)
            assert solution.saved["sum"].shape == at.shape
            calls.append(int(solution.nfe))
        assert calls[0] < calls[1]


@pytest.mark.parametrize(
    ("integrator", "ends", "more"),
    [(integrator, (2.0, 0.0), {}) for integrator in FIXED]
    + [(ADAPTIVE[0], (0.0, 2.0), {"save_at": np.asarray([0.5, 1.5])}), (ADAPTIVE[1], (2.0, 0.0), {})],
    ids=str,
)
def test_the_reported_evaluations_are_the_counted_ones(integrator, ends, more):
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    def f(t, y):
        jax.debug.callback(count)
        stiff = jnp.where(t > 1.0, 60.0, 1.0)  # makes the adaptive ones reject steps
        return {"y": -stiff * y["y"] * jnp.cos(20.0 * t)}

    solution = jax.jit(lambda y: integrator(f, y, *ends, **more))({"y": jnp.ones(2)})
    jax.effects_barrier()
    assert int(solution.nfe) == calls
    assert calls >= 20
    assert solution.nfe.dtype == jnp.int32


def test_nfe_of_a_member_is_that_of_its_own_solve():
    rate = jnp.asarray([0.1, 5.0, 25.0])
    solve = lambda one: Adaptive()(lambda t, y: 10.0 * jnp.sin(one * t) - y, one, 0.0, 1.0)  # noqa: E731
    together, single = jax.vmap(solve)(rate), jax.jit(solve)
    alone = [single(one) for one in rate]
    np.testing.assert_array_equal(together.nfe, [solution.nfe for solution in alone])
    np.testing.assert_allclose(together.y, [solution.y for solution in alone], rtol=1e-5)
    assert len(set(together.nfe.tolist())) == 3


def test_a_solve_that_does_not_arrive_is_nan():
    solve = lambda rate: Adaptive(max_steps=20)(  # noqa: E731
        lambda t, y: -rate * y, jnp.ones(()), 0.0, 1.0, save_at=np.asarray([0.5])
    )
    both = jax.vmap(solve)(jnp.asarray([0.1, 5000.0]))
    assert np.isnan(both.y).tolist() == [False, True]
    assert np.isnan(both.saved).tolist() == [[False], [True]]
    assert int(both.nfe[1]) == 2 + 6 * 20


@pytest.mark.parametrize("integrator", tiers([*FIXED, Adaptive(rtol=1e-8, atol=1e-8)], first=FIXED[2:]), ids=str)
def test_dtypes_and_gradients(integrator):
    decay = lambda rate, y0: integrator(lambda t, y: -rate * t * y, y0, 0.0, 1.0).y  # noqa: E731
    with jax.enable_x64(True):
        low = lambda y0: integrator(lambda t, y: (-t * y).astype(y.dtype), y0, 0.0, 1.0).y  # noqa: E731
        assert jax.eval_shape(low, jnp.ones(2, jnp.float32)).dtype == jnp.float32
        by_rate, by_start = jax.grad(decay, argnums=(0, 1))(jnp.asarray(0.7), jnp.asarray(1.3))
        assert by_rate.dtype == jnp.float64
        tolerance = {"euler": 0.1, "heun": 2e-3}.get(integrator.method, 1e-6)
        np.testing.assert_allclose(by_rate, -0.5 * 1.3 * np.exp(-0.35), rtol=tolerance)
        np.testing.assert_allclose(by_start, np.exp(-0.35), rtol=tolerance)


def test_mistakes():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        FixedStep(steps=0)
    with pytest.raises(ValueError, match="atol > 0 and max_steps at least 1"):
        Adaptive(atol=0.0)
    with pytest.raises(TypeError, match="floating-point states, got int32"):
        Adaptive()(lambda t, y: y, jnp.ones(2, int), 0.0, 1.0)
    for integrator in (FixedStep(), Adaptive()):  # nowhere to go
        np.testing.assert_array_equal(integrator(lambda t, y: -y, jnp.ones(2), 0.5, 0.5).y, 1.0)
