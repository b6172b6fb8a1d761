"""Gradient checkpointing: every policy gives the gradient of none, in less memory, by as many passes as it says."""

import functools
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.autoencoder import ConvEncoder, ViTEncoder
from models.dit import DiT
from models.embedding_mlp import EmbeddingMLP
from models.flows.bijection import merge, split
from models.flows.causal import CausalTransformer
from models.flows.cnf import CNF
from models.flows.conditioners import MLPConditioner, ResNetConditioner, TransformerConditioner
from models.flows.coupling import Coupling
from models.flows.glow import Glow
from models.flows.stacked import Stacked
from models.flows.tarflow import TarFlow
from models.mlp import MLP
from models.pixelcnn import PixelCNN
from models.remat import bytes_kept, checkpointed_scan, named, passes, policy, segment_length
from models.resnet import IResNet
from models.revolve import binomial, least_steps, nested
from models.rnn import GRU, LSTM, RNN
from models.sphereface import SphereFace
from models.transformer import Transformer
from models.unet import UNet
from models.vit import ViT
from samplers.integrators import FixedStep
from tests.test_models import perturbed
from training.flops import matmul_flops

SOME, FEW = ("full", "group(3)", "nested"), ("group(3)", "nested")
POLICIES = (*SOME, "dots", "names(save=hidden+attention+conv+gates)", "sqrt", "binomial(2)")
# How many are compiled for whom, to be quick: what differs from network to network is the chain, not the policy.
FULLY, HARDLY = ("mlp", "transformer", "lstm", "glow"), ("iresnet", "sphereface", "unet", "cnf")
IMAGE, SEQUENCE = (8, 8, 2), (12, 8)
NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (MLP(width=8, depth=7, dropout=0.3), IMAGE),
    "dit": (DiT(width=8, depth=7, heads=2, patch=4, dropout=0.3), IMAGE),
    "unet": (UNet(width=8, multipliers=(1,), blocks=5, attention=(), dropout=0.3), IMAGE),
    "transformer": (Transformer(width=8, depth=7, heads=2, dropout=0.3), SEQUENCE),
    "rnn": (RNN(width=8), SEQUENCE),
    "lstm": (LSTM(width=8, depth=2, layer_norm=True, dropout=0.3), SEQUENCE),
    "gru": (GRU(width=8, bidirectional=True), SEQUENCE),
    "pixelcnn": (PixelCNN(width=8, depth=7, grid=(3, 4), dropout=0.3), SEQUENCE),
    "iresnet": (IResNet(depth=34, width=4, features=4, dropout=0.3), IMAGE),
    "sphereface": (SphereFace(depth=20, width=4, features=4), IMAGE),
    "vit": (ViT(width=8, depth=7, heads=2, patch=4, features=4), IMAGE),
    "embedding mlp": (EmbeddingMLP(width=8, depth=7, features=4, dropout=0.3), IMAGE),
    "vqvae encoder": (ConvEncoder(width=8, depth=7, reduction=2), IMAGE),
    "resnet conditioner": (ResNetConditioner(width=8, depth=7), IMAGE),
}
COUPLING = Coupling(conditioner=MLPConditioner(width=8, depth=1))
FLOWS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "glow": (Glow(levels=1, steps=7, conditioner=MLPConditioner(width=8, depth=1)), IMAGE),
    "stacked": (Stacked(block=COUPLING, depth=7), (6,)),
    "tarflow": (TarFlow(patch=4, blocks=7, net=CausalTransformer(width=8, depth=1, heads=2)), IMAGE),
    "cnf": (CNF(net=MLP(width=8, depth=2), integrator=FixedStep(method="heun", steps=7)), (3,)),
}


def arguments(net: Any, batch: int) -> tuple[Any, ...]:
    """What a network is called with besides its input."""
    if isinstance(net, (MLP, DiT, UNet)):
        return (jnp.linspace(0.0, 300.0, batch),)
    if isinstance(net, (ResNetConditioner, TransformerConditioner)):
        return (None, 3)
    return (5,) if isinstance(net, (ConvEncoder, ViTEncoder)) else ()


def trains(net: Any) -> bool:
    return not isinstance(net, (ResNetConditioner, TransformerConditioner, CausalTransformer))


def of_net(net: Any, shape: tuple[int, ...], dtype: Any, batch: int = 2) -> tuple[Any, Any]:
    """(value and gradients of (parameters, input), these)."""
    x = jax.random.normal(jax.random.key(1), (batch, *shape), dtype)
    rest = arguments(net, batch)
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, *rest))(x)
    fixed = {name: tree for name, tree in variables.items() if name != "params"}
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), perturbed(variables["params"]))

    def loss(params: Any, x: Any) -> Any:
        training = {"train": True, "rngs": {"dropout": jax.random.key(2)}, "mutable": ["batch_stats"]}
        out = net.apply({"params": params, **fixed}, x, *rest, **(training if trains(net) else {}))
        return sum(jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.floating))

    return jax.jit(jax.value_and_grad(loss, (0, 1))), (params, x)


def of_flow(flow: Any, shape: tuple[int, ...], dtype: Any, batch: int = 2) -> tuple[Any, Any]:
    x = jax.random.normal(jax.random.key(1), (batch, *shape), dtype)
    params = jax.jit(lambda x: flow.init(jax.random.key(0), x))(x)
    trained, constants = split(params)
    trained = jax.tree.map(lambda leaf: leaf.astype(dtype), perturbed(trained))

    def loss(trained: Any, x: Any) -> Any:
        z, logdet = flow.forward(merge(trained, constants), x)
        return jnp.mean(jnp.sin(z)) + jnp.mean(logdet)

    return jax.jit(jax.value_and_grad(loss, (0, 1))), (trained, x)


def with_remat(thing: Any, remat: str) -> Any:
    import dataclasses

    return thing.clone(remat=remat) if hasattr(thing, "clone") else dataclasses.replace(thing, remat=remat)


def near(found: Any, expected: Any, rtol: float) -> None:
    """To `rtol` of the largest number of each array, and of all gradients together."""
    everything = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(float(jnp.abs(b).max()), 0.01 * everything))


def held_to_none(make: Any, case: tuple[Any, Any], dtype: Any, rtol: float, policies: tuple[str, ...]) -> None:
    thing, shape = case
    plain, at = make(with_remat(thing, "none"), shape, dtype)
    expected = plain(*at)
    assert all(float(jnp.abs(leaf).max()) > 0.0 for leaf in jax.tree.leaves(expected[1][1]))
    for remat in policies:
        found, _ = make(with_remat(thing, remat), shape, dtype)
        near(found(*at), expected, rtol)


def policies_of(name: str) -> tuple[str, ...]:
    return POLICIES if name in FULLY else FEW if name in HARDLY else SOME


@pytest.mark.parametrize("name", NETS)
def test_every_policy_has_the_gradient_of_none_in_double_precision(name):
    """Dropout included: what is computed again draws what was drawn."""
    with jax.enable_x64(True):
        held_to_none(of_net, NETS[name], jnp.float64, 1e-10, policies_of(name))


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_every_policy_has_the_gradient_of_none_in_single_precision(name):
    held_to_none(of_net, NETS[name], jnp.float32, 1e-5, POLICIES)


@pytest.mark.parametrize("name", FLOWS)
def test_every_policy_has_the_gradient_of_none_in_flows(name):
    reversible = ("reversible", "reversible(1)") if name in ("glow", "stacked") else ()
    with jax.enable_x64(True):
        held_to_none(of_flow, FLOWS[name], jnp.float64, 1e-10, policies_of(name))
        held_to_none(of_flow, FLOWS[name], jnp.float64, 1e-9, reversible)  # whose error grows with every layer


# What each policy holds, on chains of 16 links and more.
WIDE: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "mlp": (of_net, MLP(width=32, depth=64, expansion=4), (8, 8, 1)),
    "dit": (of_net, DiT(width=16, depth=16, heads=2, patch=2), (8, 8, 1)),
    "unet": (of_net, UNet(width=32, multipliers=(1,), blocks=32, attention=()), (8, 8, 1)),
    "transformer": (of_net, Transformer(width=16, depth=16, heads=2), (32, 16)),
    "lstm": (of_net, LSTM(width=32), (256, 8)),
    "pixelcnn": (of_net, PixelCNN(width=16, depth=16, grid=(6, 6)), (36, 16)),
    "sphereface": (of_net, SphereFace(depth=64, width=4, features=4), (32, 32, 2)),
    "vqvae encoder": (of_net, ConvEncoder(width=8, depth=16, reduction=2), (16, 16, 1)),
    "glow": (of_flow, Glow(levels=1, steps=16, conditioner=MLPConditioner(width=32, depth=2)), (8, 8, 2)),
    "tarflow": (of_flow, TarFlow(patch=2, blocks=16, net=CausalTransformer(width=16, depth=1, heads=2)), (8, 8, 1)),
    "cnf": (of_flow, CNF(net=MLP(width=32, depth=1), integrator=FixedStep(method="heun", steps=256)), (16,)),
}


def temporary(make: Any, thing: Any, shape: tuple[int, ...]) -> int:
    """Bytes that the compiled gradient holds besides its arguments and results, as the compiler plans it."""
    gradient, at = make(thing, shape, jnp.float32, 128)
    return gradient.lower(*at).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", WIDE)
def test_memory_falls_in_the_order_of_the_theory(name):
    make, thing, shape = WIDE[name]
    order = ("none", "dots", "group(2)", "sqrt", "nested")
    held = [temporary(make, with_remat(thing, remat), shape) for remat in order]
    assert held[0] > held[1] > held[2] >= held[3]
    # Sphereface's longest chain of large images has 3 links, of which three levels' states are no fewer.
    assert held[3] >= held[4] or name == "sphereface"


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


@pytest.mark.parametrize(
    "remat",
    ["none", "full", "group(5)", "group(6)", "sqrt", "nested(1)", "nested(2)", "nested", "nested(5)", "binomial(3)"],
)
@pytest.mark.parametrize("n", [2, 24])
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


@pytest.mark.parametrize("remat", ["none", *POLICIES])
def test_chains_at_the_edge(remat):
    """Of no links, of one, of links that are told nothing, from a number of Python's."""
    body = lambda h, x: (jnp.sin(h) + (0.0 if x is None else x), h)  # noqa: E731
    for n in (0, 1, 5):
        xs = jnp.linspace(0.0, 1.0, n)
        slope = jax.grad(lambda h: checkpointed_scan(body, h, xs, remat)[0])  # noqa: B023
        near(slope(0.3), jax.grad(lambda h: jax.lax.scan(body, h, xs)[0])(0.3), 1e-6)  # noqa: B023
        h, ys = checkpointed_scan(body, 0.3, xs, remat)
        near((h, ys), jax.lax.scan(body, 0.3, xs), 1e-6) if n else None
    slope = jax.grad(lambda h: checkpointed_scan(body, h, None, remat, length=5)[0])(0.3)
    near(slope, jax.grad(lambda h: jax.lax.scan(body, h, None, length=5)[0])(0.3), 1e-6)


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
