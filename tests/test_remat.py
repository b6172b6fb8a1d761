"""Gradient checkpointing: every policy gives the gradient of none, in less memory, by as many passes as it says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.autoencoder import ConvEncoder
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
from models.resnet import IResNet
from models.rnn import GRU, LSTM, RNN
from models.sphereface import SphereFace
from models.transformer import Transformer
from models.unet import UNet
from models.vit import ViT
from models.vit_autoencoder import ViTEncoder
from samplers.integrators import FixedStep
from tests.conftest import AS_USERS_COMPILE, tiers
from tests.test_models import perturbed

SOME, FEW = ("full", "group(3)", "nested"), ("group(3)", "nested")
POLICIES = (*SOME, "dots", "names(save=hidden+attention+conv+gates)", "sqrt", "binomial(2)")
# How many are compiled for whom, to be quick: what differs from network to network is the chain, not the policy.
FULLY, HARDLY = ("mlp", "transformer", "lstm", "glow"), ("iresnet", "sphereface", "unet", "cnf")
# jax.nn.dot_product_attention has a softmax in float32 even where all else is float64: it must round alike again.
ATTENTION = ("dit", "transformer", "vit", "tarflow")
IMAGE, SEQUENCE = (8, 8, 2), (12, 8)
NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (MLP(width=8, depth=7, dropout=0.3), IMAGE),
    "dit": (DiT(width=8, depth=7, heads=2, patch=4, dropout=0.3), IMAGE),
    "unet": (UNet(width=8, multipliers=(1,), blocks=5, attention=(), dropout=0.3), IMAGE),
    "transformer": (Transformer(width=8, depth=7, heads=2, dropout=0.3), SEQUENCE),
    "rnn": (RNN(width=8, depth=2, dropout=0.3), SEQUENCE),
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


def held_to_none(name: str, dtype: Any, rtol: float, policies: tuple[str, ...]) -> None:
    make, (thing, shape) = (of_net, NETS[name]) if name in NETS else (of_flow, FLOWS[name])
    options = AS_USERS_COMPILE if name in ATTENTION and dtype == jnp.float64 else None

    def gradients(remat: str) -> Any:
        gradient, at = make(with_remat(thing, remat), shape, dtype)
        return gradient.lower(*at).compile(compiler_options=options)(*at)

    expected = gradients("none")
    assert all(float(jnp.abs(leaf).max()) > 0.0 for leaf in jax.tree.leaves(expected[1][1]))
    for remat in policies:
        near(gradients(remat), expected, rtol)


def policies_of(name: str) -> tuple[str, ...]:
    return POLICIES if name in FULLY else FEW if name in HARDLY else SOME


@pytest.mark.parametrize("name", tiers(list(NETS), first=("rnn",)))
def test_every_policy_has_the_gradient_of_none_in_double_precision(name):
    """Dropout included: what is computed again draws what was drawn."""
    with jax.enable_x64(True):
        held_to_none(name, jnp.float64, 1e-10, policies_of(name))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["rnn", "transformer", "lstm"])
def test_every_policy_has_the_gradient_of_none_in_single_precision(name):
    held_to_none(name, jnp.float32, 1e-5, POLICIES)


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(FLOWS))
def test_every_policy_has_the_gradient_of_none_in_flows(name):
    reversible = ("reversible", "reversible(1)") if name in ("glow", "stacked") else ()
    with jax.enable_x64(True):
        held_to_none(name, jnp.float64, 1e-10, policies_of(name))
        held_to_none(name, jnp.float64, 1e-9, reversible)  # whose error grows with every layer


# What each policy holds, on chains of 16 links and more.
WIDE: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "mlp": (of_net, MLP(width=32, depth=64, expansion=4), (8, 8, 1)),
    "dit": (of_net, DiT(width=16, depth=16, heads=2, patch=2), (8, 8, 1)),
    "unet": (of_net, UNet(width=32, multipliers=(1,), blocks=32, attention=()), (8, 8, 1)),
    "transformer": (of_net, Transformer(width=16, depth=16, heads=2), (32, 16)),
    "lstm": (of_net, LSTM(width=32), (256, 8)),
    "pixelcnn": (of_net, PixelCNN(width=16, depth=16, grid=(6, 6)), (36, 16)),
    # Of two pixels: on larger images the widest states would be those of the first stage, a chain of three links.
    "sphereface": (of_net, SphereFace(depth=64, width=4, features=4), (2, 2, 2)),
    "vqvae encoder": (of_net, ConvEncoder(width=8, depth=16, reduction=2), (16, 16, 1)),
    "glow": (of_flow, Glow(levels=1, steps=16, conditioner=MLPConditioner(width=32, depth=2)), (8, 8, 2)),
    "tarflow": (of_flow, TarFlow(patch=2, blocks=16, net=CausalTransformer(width=16, depth=1, heads=2)), (8, 8, 1)),
    "cnf": (of_flow, CNF(net=MLP(width=32, depth=1), integrator=FixedStep(method="heun", steps=256)), (16,)),
}


def temporary(make: Any, thing: Any, shape: tuple[int, ...]) -> int:
    """Bytes that the compiled gradient holds besides its arguments and results, as the compiler plans it."""
    gradient, at = make(thing, shape, jnp.float32, 128)
    return gradient.lower(*at).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", tiers(list(WIDE), first=("lstm",)))
def test_memory_falls_in_the_order_of_the_theory(name):
    make, thing, shape = WIDE[name]
    order = ("none", "dots", "group(2)", "sqrt", "nested")
    held = [temporary(make, with_remat(thing, remat), shape) for remat in order]
    assert held[0] > held[1] > held[2] >= held[3] >= held[4]
