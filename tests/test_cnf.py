"""Continuous flows against Jacobians, linear ODEs in closed form, counted calls of a net, and the memory of steps."""

from dataclasses import replace

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.integrate import simpson
from scipy.linalg import expm

from models.flows.cnf import CNF
from models.flows.combinators import Chain
from models.flows.permutations import Reverse
from models.mlp import MLP
from models.model import Net
from models.trace import Exact, Hutchinson
from samplers.integrators import Adaptive, FixedStep
from tests.flows import hold, perturbed, quick_jit

RK4, EULER, DOPRI = FixedStep(steps=20), FixedStep(method="euler", steps=2), Adaptive()
MLP_2 = MLP(width=8, depth=1, num_classes=2)
A = np.asarray([[0.3, -0.8, 0.1], [0.9, -0.2, 0.4], [-0.3, 0.2, 0.5]])


class Linear(Net):
    """f = Ax."""

    @nn.compact
    def __call__(self, x, noise, label=None, train=False, interval=None):
        return x @ self.param("A", nn.initializers.normal(), 2 * x.shape[1:]).T


class Constant(Net):
    """f = c."""

    @nn.compact
    def __call__(self, x, noise, label=None, train=False, interval=None):
        return jnp.broadcast_to(self.param("c", nn.initializers.normal(), x.shape[1:]), x.shape)


class Smooth(Net):
    """In whatever precision x has, where the project's own nets round to float32."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, noise, label=None, train=False, interval=None):
        t = noise.astype(x.dtype)[:, None] / 1000.0
        h = nn.Dense(8)(jnp.concatenate([x.reshape(x.shape[0], -1), t], axis=-1))
        h = h if label is None else h + nn.Embed(self.num_classes, 8)(label)
        return nn.Dense(x[0].size)(jnp.tanh(h)).reshape(x.shape)


class Wide(Net):
    """Hidden activations far bigger than the state."""

    @nn.compact
    def __call__(self, x, noise, label=None, train=False, interval=None):
        return nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(1024)(x)))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def data(*shape, key=0):
    return jax.random.normal(jax.random.key(key), shape, jnp.result_type(float))


def linear(matrix, **settings):
    """The flow of f = Ax and its parameters."""
    return CNF(net=Linear(), **settings), {"A": jnp.asarray(matrix, jnp.result_type(float))}


def moved(flow, x, condition=None):
    """Parameters at which nothing is zero; compiled as one, for op by op it takes seconds."""
    return quick_jit(lambda: perturbed(flow.init(jax.random.key(1), x, condition), jax.random.key(1)))()


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(probes=2)], ids=["exact", "hutchinson"])
def test_log_determinant_and_inverse(trace):
    """All that is asked of a bijection. Under an estimated trace it cannot be the Jacobian's; the rest still holds."""
    with jax.enable_x64(True):
        x, flow = data(3, 2, 2), CNF(net=Smooth(), integrator=FixedStep(steps=200), trace=trace)
        condition = {"label": jnp.asarray([0, 1, 1]), "keys": keys(3)}
        if isinstance(trace, Exact):
            hold(flow, x, condition)
            return
        params = moved(flow, x, condition)
        z, logdet = quick_jit(flow.forward)(params, x, condition)
        back, minus = quick_jit(flow.inverse)(params, z, condition)
        np.testing.assert_allclose(back, x, atol=1e-8)
        np.testing.assert_allclose(minus, -logdet, atol=1e-8)  # the same noise on the way back


@pytest.mark.thorough
def test_a_net_of_the_project_in_float32():
    x, condition = data(3, 4), {"label": jnp.asarray([0, 1, -1])}
    flow = CNF(net=MLP_2, integrator=FixedStep(method="heun", steps=100), time_scale=1.0)
    params = moved(flow, x, condition)
    forward = quick_jit(flow.forward)
    z, logdet = forward(params, x, condition)
    assert z.dtype == logdet.dtype == jnp.float32
    back, minus = quick_jit(flow.inverse)(params, z, condition)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(minus, -logdet, atol=1e-4)
    otherwise = forward(params, x, {"label": jnp.asarray([1, 0, -1])})[0]
    assert np.abs(otherwise - z)[:2].max(1).min() > 1e-4
    np.testing.assert_allclose(otherwise[2], z[2], atol=1e-6)
    few = replace(flow, integrator=EULER)
    half = jax.eval_shape(few.forward, params, x.astype(jnp.bfloat16), condition)
    assert half[0].dtype == half[1].dtype == jnp.float32


@pytest.mark.parametrize("integrator", [RK4, DOPRI], ids=["rk4", "dopri5"])
def test_a_linear_ode_is_known_exactly(integrator):
    x, (flow, params) = np.asarray(data(5, 3)), linear(A, integrator=integrator)
    z, logdet, seen = quick_jit(flow.observe)(params, x)
    np.testing.assert_allclose(z, x @ expm(A).T, atol=1e-5)
    np.testing.assert_allclose(logdet, np.trace(A), atol=1e-5)
    log_prob = lambda z: -0.5 * np.sum(z**2, -1) - 1.5 * np.log(2 * np.pi)  # noqa: E731
    np.testing.assert_allclose(log_prob(z) + logdet, log_prob(x @ expm(A).T) + np.trace(A), atol=1e-5)
    np.testing.assert_allclose(seen["jacobian_energy"], np.sum(A**2) / 3, rtol=1e-5)
    t = np.linspace(0.0, 1.0, 101)
    squares = np.sum(np.stack([x @ (A @ expm(A * time)).T for time in t]) ** 2, axis=-1)
    np.testing.assert_allclose(seen["kinetic_energy"], simpson(squares, x=t, axis=0) / 3, rtol=1e-4)
    back, minus = quick_jit(flow.inverse)(params, z)
    np.testing.assert_allclose(back, x, atol=2e-5)
    np.testing.assert_allclose(minus, -np.trace(A), atol=1e-5)
    assert {name: (value.shape, value.dtype) for name, value in seen.items()} == dict.fromkeys(
        ("nfe", "kinetic_energy", "jacobian_energy"), ((5,), jnp.float32)
    )


def test_kinetic_energy_of_a_constant_field():
    c = np.asarray([[0.5, -1.0], [2.0, 0.25]], np.float32)
    flow = CNF(net=Constant(), integrator=FixedStep(steps=8))
    z, logdet, seen = flow.observe({"c": jnp.asarray(c)}, jnp.zeros((2, 2, 2)))
    np.testing.assert_array_equal(z, np.stack([c, c]))
    np.testing.assert_array_equal(seen["kinetic_energy"], np.sum(c**2) / 4)
    np.testing.assert_array_equal(seen["jacobian_energy"], 0.0)
    np.testing.assert_array_equal(logdet, 0.0)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_approaches_the_exact_trace(noise):
    n, errors = 4000, {}
    x = jnp.broadcast_to(data(1, 3), (n, 3))
    for probes in (1, 4):
        trace = Hutchinson(noise=noise, probes=probes)
        flow, params = linear(A, integrator=EULER, trace=trace)
        _, logdet, seen = quick_jit(flow.observe)(params, x, {"keys": keys(n, probes)})
        for name, estimates, truth in (
            ("trace", logdet, np.trace(A)),
            ("norm", seen["jacobian_energy"], np.sum(A**2) / 3),
        ):
            errors[name, probes] = float(np.std(estimates)) / np.sqrt(n)
            assert abs(float(np.mean(estimates)) - truth) < 4 * errors[name, probes], name
            assert errors[name, probes] > 1e-4
    assert errors["trace", 1] / errors["trace", 4] == pytest.approx(2.0, rel=0.1)


def test_rademacher_noise_is_exact_for_a_diagonal():
    diagonal = np.asarray([0.5, -1.0, 0.2])
    flow, params = linear(np.diag(diagonal), integrator=EULER, trace=Hutchinson())
    _, logdet, seen = quick_jit(flow.observe)(params, data(4, 3), {"keys": keys(4)})
    np.testing.assert_allclose(logdet, diagonal.sum(), atol=1e-6)
    np.testing.assert_allclose(seen["jacobian_energy"], np.sum(diagonal**2) / 3, rtol=1e-5)


@pytest.mark.parametrize("integrator", [FixedStep(method="heun", steps=4), DOPRI], ids=["heun", "dopri5"])
def test_nothing_depends_on_the_batch(integrator):
    """Neither the steps of an example nor its noise."""
    x, own = data(4, 3), keys(4)
    flow = CNF(net=Smooth(), integrator=integrator, trace=Hutchinson())
    params = moved(flow, x)
    observe, some, elsewhere = quick_jit(flow.observe), np.asarray([3, 1]), np.asarray([0, 2])
    z, logdet, seen = observe(params, x, {"keys": own})
    others = 3.0 * x[::-1]
    among = {"keys": keys(4, seed=1).at[elsewhere].set(own[some])}
    z_among, logdet_among, seen_among = observe(params, others.at[elsewhere].set(x[some]), among)
    np.testing.assert_allclose(z_among[elsewhere], z[some], atol=1e-6)
    np.testing.assert_allclose(logdet_among[elsewhere], logdet[some], atol=1e-6)
    for name in seen:
        np.testing.assert_allclose(seen_among[name][elsewhere], seen[name][some], rtol=1e-5)
    _, other_noise, _ = observe(params, x, {"keys": keys(4, seed=1)})
    assert np.abs(other_noise - logdet).max() > 1e-3


def test_keys_are_asked_for_where_there_is_noise_and_only_there():
    x, (flow, params) = data(2, 3), linear(A, integrator=EULER, trace=Hutchinson())
    for walk in (flow.forward, flow.inverse, flow.observe):
        with pytest.raises(ValueError, match="needs a key for each example, `keys`"):
            walk(params, x)
    np.testing.assert_allclose(flow.pull(params, x), flow.inverse(params, x, {"keys": keys(2)})[0], atol=1e-6)
    replace(flow, trace=Exact()).forward(params, x)


def test_the_reported_evaluations_are_the_counted_ones():
    """However many products go with each."""
    calls = 0

    class Counted(Linear):
        @nn.compact
        def __call__(self, x, noise, label=None, train=False, interval=None):
            jax.debug.callback(count, noise)
            return super().__call__(x, noise, label, train, interval)

    def count(_):
        nonlocal calls
        calls += 1

    x = data(1, 3)
    for integrator, trace in ((FixedStep(method="heun", steps=7), Exact()), (DOPRI, Hutchinson(probes=3))):
        flow = CNF(net=Counted(), integrator=integrator, trace=trace)
        params = moved(flow, x)
        jax.effects_barrier()
        calls = 0
        nfe = quick_jit(flow.observe)(params, x, {"keys": keys(1)})[2]["nfe"]
        jax.effects_barrier()
        assert float(nfe[0]) == calls
        assert calls == 14 if integrator is not DOPRI else calls > 14


@pytest.mark.thorough
def test_gradients_of_adaptive_and_fixed_steps_agree():
    x, condition = data(4, 3), {"keys": keys(4)}
    many = FixedStep(method="heun", steps=200)
    flow = CNF(net=Smooth(), integrator=many, trace=Hutchinson())
    params = moved(flow, x)
    nothing = jax.tree.map(jnp.zeros_like, params)  # f is 0, as nets begin, and so is every error that sets a step

    def loss(params, integrator):
        z, logdet, seen = replace(flow, integrator=integrator).observe(params, x, condition)
        return jnp.mean(0.5 * jnp.sum(z**2, -1) - logdet + 0.1 * (seen["kinetic_energy"] + seen["jacobian_energy"]))

    slope = quick_jit(jax.grad(loss), static_argnums=1)
    for at in (nothing, params):
        ours, expected = (jax.flatten_util.ravel_pytree(slope(at, one))[0] for one in (DOPRI, many))
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_backward_from_the_output_alone_is_autodiff():
    with jax.enable_x64(True):
        x, condition = data(2, 3), {"keys": keys(2), "label": jnp.asarray([0, 1])}
        flow = Chain(parts=(CNF(net=Smooth(), integrator=FixedStep(steps=40), trace=Hutchinson()), Reverse()))
        params = moved(flow.parts[0], x, condition)

        @quick_jit
        def both(params, x):
            (z, logdet), vjp = jax.vjp(lambda p, x: flow.forward({"0": p}, x, condition), params, x)
            bars = (jnp.cos(z), jnp.sin(logdet))
            back, x_bar, params_bar, _ = flow.backward({"0": params}, z, condition, *bars)
            return back, (params_bar["0"], x_bar), vjp(bars)

        back, ours, expected = both(params, x)
        np.testing.assert_allclose(back, x, atol=1e-7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)


def test_a_step_costs_the_gradient_one_state():
    batch, dims = 8, 16
    x = data(batch, dims)
    state = 4 * batch * (dims + 1)

    def memory(steps):
        flow = CNF(net=Wide(), integrator=FixedStep(method="heun", steps=steps), trace=Hutchinson())
        params = jax.eval_shape(flow.init, jax.random.key(0), x)
        loss = lambda params: jnp.sum(flow.forward(params, x, {"keys": keys(batch)})[1])  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    growth = (memory(80) - memory(10)) / 70
    assert 0 < growth < 3 * state  # one hidden activation is 4·8·1024 bytes, sixty states
