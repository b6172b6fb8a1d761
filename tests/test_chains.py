"""Chains: policies against autodiff, their memory and their passes, and the plans of reversals."""

import functools
import itertools
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.remat import bytes_kept, checkpointed_scan, named, passes, policy, segment_length
from models.reversal_plan import binomial, least_steps, nested
from models.rnn import RNN
from samplers.integrators import FixedStep
from tests.conftest import tiers
from tests.test_remat import near
from training.flops import matmul_flops

POLICIES = ("full", "group(3)", "sqrt", "nested", "binomial(2)", "dots", "names(save=hidden+attention+conv+gates)")


def chain(n: int, width: int = 64, batch: int = 2048) -> tuple[Any, Any]:
    """A residual chain of n layers: (its loss under a policy, shapes of what it is called with)."""

    def body(h: Any, layer: Any) -> tuple[Any, None]:
        y = jnp.tanh(named(h @ layer["up"], "hidden"))
        return h + jnp.tanh(y @ layer["mix"]) @ layer["down"], None

    def loss(remat: str, layers: Any, h: Any) -> Any:
        return jnp.mean(checkpointed_scan(body, h, layers, remat)[0] ** 2)

    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)  # noqa: E731
    return loss, ({name: shape(n, width, width) for name in ("up", "mix", "down")}, shape(batch, width))


def chain_memory(n: int, remat: str) -> int:
    loss, shapes = chain(n)
    return jax.jit(jax.grad(partial(loss, remat))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_256_layers():
    """The square root's is a tenth of what is kept without, a nested plan's a thirtieth, and grows as the logarithm."""
    held = {remat: chain_memory(256, remat) for remat in ("none", "full", "sqrt", "nested", "binomial(5)")}
    assert held["sqrt"] <= held["none"] / 10
    assert held["nested"] <= held["none"] / 30
    assert held["binomial(5)"] < held["nested"] < held["sqrt"] < held["full"]
    by_depth = [chain_memory(n, "nested") for n in (16, 64, 256, 1024)]  # 2, 3, 4 and 5 levels: 3 states more each
    growth = np.diff(by_depth)
    np.testing.assert_allclose(growth, 3 * 2048 * 64 * 4, rtol=0.1)


class Calls:
    """How often a function was in fact run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: Any) -> Any:
        jax.debug.callback(self._more, x)  # told x, for else it is no part of the loop
        return x

    def _more(self, x: Any) -> None:
        self.count += 1

    def of(self, run: Any) -> int:
        self.count = 0
        jax.block_until_ready(run())
        jax.effects_barrier()
        return self.count


COUNTED = (
    *("none", "full", "group(5)", "group(6)", "sqrt"),
    *("nested(1)", "nested(2)", "nested", "nested(5)", "binomial(3)"),
)


@pytest.mark.parametrize(
    ("n", "remat"),
    tiers(
        itertools.product((2, 24), COUNTED),
        first=lambda n, remat: remat == "nested" or (n == 24 and remat in ("none", "group(5)", "sqrt", "binomial(3)")),
    ),
)
def test_passes_are_as_many_as_the_formula_says(remat, n):
    calls = Calls()

    def loss(h: Any, xs: Any) -> Any:
        body = lambda h, x: (jnp.sin(calls(h) * x), None)  # noqa: E731
        return jnp.sum(checkpointed_scan(body, h, xs, remat)[0])

    gradient = jax.jit(jax.grad(loss))
    assert calls.of(lambda: gradient(jnp.ones(3), jnp.ones((n, 3)))) == n + passes(remat, n)


@pytest.mark.parametrize(("n", "slots"), [(1, 1), (2, 1), (7, 3), (10, 1), (100, 4), (1000, 10), (11, 10)])
def test_binomial_plans_are_optimal(n, slots):
    """Griewank's formula is the minimum that dynamic programming finds, and the plan takes so many steps."""

    @functools.cache
    def least(n: int, s: int) -> int:
        if n == 1:
            return 0
        if s == 1:
            return n * (n - 1) // 2
        return min(m + least(n - m, s - 1) + least(m, s) for m in range(1, n))

    if n <= 100:
        assert least_steps(n, slots) == least(n, slots)
    plan = binomial(n, slots)
    assert plan.steps == least_steps(n, slots)
    assert plan.slots == slots
    assert max(plan.first.max(), plan.row.max()) <= slots


def test_nested_plans_are_chens():
    for base, levels in ((2, 5), (4, 3), (3, 2)):
        plan, n = nested(base**levels, levels), base**levels
        assert plan.steps == levels * (n - n // base)
        assert plan.slots == levels * (base - 1) + 1


class CountedRNN(RNN):
    """Counts its steps."""

    def cell(self, total: Any, params: Any, carry: Any, rest: Any) -> Any:
        return {"h": CALLS(super().cell(total, params, carry, rest)["h"])}


CALLS = Calls()


def test_a_thousand_steps_of_an_rnn_with_ten_states():
    """Griewank & Walther: 1,000 ≤ C(14, 10), so no step is taken more than 4 times; 4·1000 − C(14, 11) in all."""
    assert least_steps(1000, 10) == 4 * 1000 - 364
    net = RNN(width=4)
    x = jax.random.normal(jax.random.key(1), (2, 1000, 4))
    params = net.init(jax.random.key(0), x)["params"]
    loss = lambda net: lambda p, x: jnp.mean(jnp.sin(net.apply({"params": p}, x)[0]))  # noqa: E731
    expected = jax.jit(jax.grad(loss(net), (0, 1)))(params, x)
    found = jax.jit(jax.grad(loss(net.clone(remat="binomial(10)")), (0, 1)))(params, x)
    near(found, expected, 1e-5)
    counted = jax.jit(jax.grad(loss(CountedRNN(width=4, remat="binomial(10)"))))
    assert CALLS.of(lambda: counted(params, x)) == 1000 + passes("binomial(10)", 1000) == 1000 + 3636 + 1


def test_a_thousand_steps_of_an_ode_with_ten_states():
    calls, solve = Calls(), FixedStep(method="euler", steps=1000)

    def loss(a: Any, y: Any, remat: str, call: Any = lambda y: y) -> Any:
        field = lambda t, y: jnp.sin(call(y) * a) + t  # noqa: E731
        return jnp.sum(solve(field, y, 0.0, 1.0, remat=remat).y ** 2)

    with jax.enable_x64(True):
        a, y = jnp.asarray([0.3, 0.7, 1.1]), jnp.asarray([1.0, -0.5, 0.2])
        expected = jax.grad(partial(loss, remat="none"), (0, 1))(a, y)
        near(jax.grad(partial(loss, remat="binomial(10)"), (0, 1))(a, y), expected, 1e-10)
        gradient = jax.jit(jax.grad(partial(loss, remat="binomial(10)", call=calls)))
        assert calls.of(lambda: gradient(a, y)) == 1000 + 3636 + 1


@pytest.mark.thorough
def test_plans_under_vmap_and_with_integers_beside_the_numbers():
    """What a chain closes over, keys and labels included, is as it was."""
    keys = jax.random.split(jax.random.key(0), 9)

    def loss(remat: str, scale: Any, h: Any, label: Any) -> Any:
        def body(h: Any, x: Any) -> tuple[Any, Any]:
            key, i = x
            kept = jax.random.bernoulli(key, 0.5, h.shape)
            return jnp.where(kept, jnp.sin(scale * h + label), h), h * i

        h, ys = checkpointed_scan(body, h, (keys, jnp.arange(9)), remat)
        return jnp.sum(h) + jnp.sum(jnp.cos(ys))

    h, label = jax.random.normal(jax.random.key(1), (4, 3)), jnp.arange(4)
    each = lambda remat: jax.vmap(jax.grad(partial(loss, remat), (0, 1)), (None, 0, 0))(1.3, h, label)  # noqa: E731
    whole = lambda remat: jax.grad(  # noqa: E731
        lambda s, h: jnp.sum(jax.vmap(partial(loss, remat), (None, 0, 0))(s, h, label)), (0, 1)
    )(1.3, h)
    for remat in ("nested", "binomial(3)", "sqrt"):
        near(each(remat), each("none"), 1e-5)
        near(whole(remat), whole("none"), 1e-5)


def test_the_segment_length_is_the_least_there_is():
    for n, c, a in ((256, 1, 5), (12, 3, 1), (31, 1, 1), (1000, 7, 90)):
        memory = lambda k: -(-n // k) * c + k * a  # noqa: B023, E731
        least = min(memory(k) for k in range(1, n + 1))
        k = segment_length(n, c, a)
        assert memory(k) <= 1.2 * least
        assert n % k == 0 or min(memory(d) for d in range(1, n + 1) if n % d == 0) > 1.2 * least


def test_bytes_kept_are_those_of_the_derivative():
    """A sine keeps its cosine, a product its factors; what is an argument already is not counted."""
    body = lambda h, w: (jnp.sin(h @ w), None)  # noqa: E731
    c, a = bytes_kept(body, jnp.ones((5, 3)), jnp.ones((3, 3)))
    assert c == 5 * 3 * 4
    assert a == 5 * 3 * 4 + 2 * 3 * 3 * 4


def test_names_say_what_is_kept():
    """The chain's up-products spared, by their name; the same offloaded to the host."""
    loss, shapes = chain(4)
    text = {r: str(jax.make_jaxpr(jax.grad(partial(loss, r)))(*shapes)) for r in ("full", "names(save=hidden)")}
    assert text["full"].count("dot_general") == text["names(save=hidden)"].count("dot_general") + 1
    assert "<host>" in str(jax.make_jaxpr(jax.grad(partial(loss, "names(offload=hidden)")))(*shapes))


@pytest.mark.parametrize(
    "wrong", ["ful", "group", "group(0)", "group(x)", "sqrt(2)", "binomial", "names()", "nested(-1)", "()"]
)
def test_a_misspelt_policy_lists_those_there_are(wrong):
    with pytest.raises(
        ValueError, match=f"unknown remat policy {re.escape(repr(wrong))}; allowed are none, dots, names"
    ):
        policy(wrong)


def test_a_name_that_nothing_has_and_a_policy_of_others():
    with pytest.raises(ValueError, match="no activation is named 'hiden'; there are attention, conv, gates, hidden"):
        policy("names(save=conv+hiden)")
    with pytest.raises(ValueError, match=r"reversible.* is of stacked bijections"):
        policy("reversible")
    assert policy("reversible(2)", bijection=True).number == 2
    assert policy(" names(save=conv, offload=hidden+gates) ").offload == ("hidden", "gates")
    with pytest.raises(TypeError, match="floating-point"):
        checkpointed_scan(lambda i, x: (i + 1, x), jnp.zeros((), jnp.int32), jnp.ones(4), "nested")
    with pytest.raises(TypeError, match="must stay as it is"):
        checkpointed_scan(lambda h, x: (h.astype(jnp.float32), x), jnp.zeros((), jnp.bfloat16), jnp.ones(4), "nested")


@functools.cache
def at_the_edge(n, remat=None):
    """h, ys and dh/dh₀ of n links, or of five that are told nothing (n None), from a number of Python's."""
    xs = None if n is None else jnp.linspace(0.0, 1.0, n)
    body = lambda h, x: (jnp.sin(h) + (0.0 if x is None else x), h)  # noqa: E731
    length = {"length": 5} if n is None else {}

    def ends(h):
        scan = jax.lax.scan if remat is None else partial(checkpointed_scan, remat=remat)
        found = scan(body, h, xs, **length)
        return found[0], found

    slope, found = jax.jit(jax.grad(ends, has_aux=True))(0.3)
    return *found, slope


@pytest.mark.parametrize("remat", tiers(["none", *POLICIES], first=("full", "sqrt", "nested")))
def test_chains_at_the_edge(remat):
    """Of no links, of one, of links that are told nothing."""
    for n in (0, 1, 5, None):
        (h, ys, slope), expected = at_the_edge(n, remat), at_the_edge(n)
        near((h, slope), expected[::2], 1e-6)
        near(ys, expected[1], 1e-6) if n != 0 else None


@pytest.mark.parametrize("remat", ["none", "full", "group(4)", "sqrt", "nested", "nested(2)", "binomial(3)"])
def test_flops_of_a_gradient_are_those_of_its_passes(remat):
    """A product forwards, two backwards, and one for each pass beside the first."""
    n, width, batch = 64, 16, 32
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)  # noqa: E731
    body = lambda h, w: (h + jnp.sin(h @ w), None)  # noqa: E731
    gradient = jax.grad(lambda w, h: jnp.sum(checkpointed_scan(body, h, w, remat)[0]), (0, 1))
    product = 2 * batch * width * width
    found = matmul_flops(gradient, shape(n, width, width), shape(batch, width))
    assert abs(found - (3 * n + passes(remat, n)) * product) <= product
