"""Every bijection: log-determinant against autodiff, inverse both ways, examples apart. Flows against known bits."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from losses.likelihood import NegativeLogLikelihood
from metrics.flow_likelihood import FlowLikelihood
from metrics.likelihood import bits_per_dim
from models.flows.autoregressive import MADE, Autoregressive
from models.flows.bijection import Bijection, merge, split
from models.flows.combinators import Chain, Identity, Invert
from models.flows.conditioners import ConvConditioner, MLPConditioner, ResNetConditioner, TransformerConditioner
from models.flows.coupling import Coupling, FactorOut
from models.flows.dequantization import UniformDequantization, VariationalDequantization
from models.flows.elementwise import Additive, Affine
from models.flows.flow import Flow
from models.flows.glow import Glow
from models.flows.linear import ActNorm, DiagonalScale, Invertible1x1
from models.flows.masks import Checkerboard, Halves
from models.flows.nice import NICE
from models.flows.permutations import EvenOddFirst, FixedPermutation, Reverse
from models.flows.preprocessing import Logit, Scale, Unit
from models.flows.priors import ClassNormal, Logistic, Normal, Uniform
from models.flows.realnvp import RealNVP
from models.flows.reshaping import Patches, Squeeze
from models.flows.spline import RationalQuadratic
from models.flows.stacked import Stacked
from samplers.flow import FlowSampler
from tests.conftest import tiers
from tests.flows import hold, perturbed, quick_jit
from training.cli import load_experiment
from training.plan import Plan

SMALL = MLPConditioner(width=6, depth=1)
CONV, RESNET = ConvConditioner(width=3), ResNetConditioner(width=3, depth=1)
IMAGE, VECTOR = (4, 4, 1), (6,)
BIJECTIONS = {
    "identity": (Identity(), IMAGE),
    "reverse": (Reverse(), VECTOR),
    "fixed permutation": (FixedPermutation(), VECTOR),
    "even, then odd": (EvenOddFirst(), (5,)),
    "squeeze": (Squeeze(), IMAGE),
    "scale": (Scale(scale=-2.0, shift=0.5), VECTOR),
    "unit": (Unit(levels=17), VECTOR),
    "actnorm": (ActNorm(), (2, 2, 3)),
    "1x1": (Invertible1x1(parametrisation="plain"), (2, 2, 3)),
    "1x1 plu": (Invertible1x1(), (2, 2, 3)),
    "diagonal": (DiagonalScale(standardise=1.0), IMAGE),
    "additive": (Coupling(transform=Additive(), conditioner=SMALL), VECTOR),
    "patches": (Patches(patch=2, bijection=Chain(parts=(Reverse(axis=-2), Coupling(conditioner=SMALL)))), IMAGE),
    "affine exp": (Coupling(transform=Affine(scale="exp"), conditioner=SMALL, mask=Halves(swap=True)), (5,)),
    "affine sigmoid": (Coupling(transform=Affine(scale="sigmoid"), conditioner=SMALL), VECTOR),
    "spline": (Coupling(transform=RationalQuadratic(bins=4), conditioner=SMALL), VECTOR),
    "checkerboard, resnet": (Coupling(conditioner=RESNET, mask=Checkerboard(swap=True)), IMAGE),
    "channels, convolution": (Coupling(conditioner=CONV), (2, 2, 4)),
    "transformer of images": (Coupling(conditioner=TransformerConditioner(width=4, depth=1, heads=2)), (2, 2, 4)),
    "transformer of vectors": (Coupling(conditioner=TransformerConditioner(width=4, depth=1, heads=2)), (5,)),
    "factored out": (FactorOut(bijection=ActNorm(), mask=Halves()), (2, 2, 4)),
    "inverted": (Invert(bijection=Coupling(conditioner=SMALL)), VECTOR),
    "stacked": (Stacked(block=Chain(parts=(Coupling(conditioner=SMALL), Reverse())), depth=3), VECTOR),
    "stacked, remat": (Stacked(block=Coupling(conditioner=SMALL), depth=2, remat="full"), VECTOR),
    "NICE": (NICE(conditioner=SMALL), IMAGE),
    "NICE, as written": (NICE(conditioner=SMALL, standardise=False, latent_units=False), IMAGE),
    "RealNVP": (RealNVP(couplings=1, conditioner=SMALL), IMAGE),
    "Glow": (Glow(levels=2, steps=2, conditioner=SMALL), IMAGE),
    "Glow, plain": (Glow(levels=1, steps=1, conditioner=SMALL, convolution="plain", scale="tanh"), IMAGE),
}


def data(shape, batch=3, key=0):
    return jax.random.normal(jax.random.key(key), (batch, *shape), jnp.float64)


@pytest.mark.parametrize(
    "name",
    tiers(
        list(BIJECTIONS),
        first=lambda name: (
            not name.startswith("transformer")
            and name not in ("Glow", "RealNVP", "checkerboard, resnet", "NICE", "stacked, remat")
        ),
    ),
)
def test_log_determinant_and_inverse(name):
    bijection, shape = BIJECTIONS[name]
    with jax.enable_x64(True):
        hold(bijection, data(shape), scale=0.1 if "Glow" in name else 0.3)  # e^s of many layers: 1e-8 is of 1


def test_logit():
    with jax.enable_x64(True):
        hold(Logit(alpha=0.05), jax.nn.sigmoid(data(VECTOR)))


def test_classes_change_a_bijection_and_are_kept_apart():
    label = jnp.asarray([0, 1, -1])
    bijection = Coupling(conditioner=MLPConditioner(width=6, depth=1, num_classes=2))
    with jax.enable_x64(True):
        x = data(VECTOR)
        params = hold(bijection, x, {"label": label})
        told, untold = (bijection.forward(params, x, c)[0] for c in ({"label": label}, None))
        assert np.abs(told - untold)[:2].min(axis=None, initial=1.0, where=np.arange(6) >= 3) > 1e-6
        np.testing.assert_array_equal(told[2], untold[2])  # −1 and no label are one


@dataclass(frozen=True, kw_only=True)
class Flipped(Bijection):
    """A log-determinant with the wrong sign, both ways: `inverse cancels forward` does not see it."""

    bijection: Bijection

    def init(self, key, x, condition=None):
        return self.bijection.init(key, x, condition)

    def forward(self, params, x, condition=None):
        z, logdet = self.bijection.forward(params, x, condition)
        return z, -logdet

    def inverse(self, params, z, condition=None):
        x, logdet = self.bijection.inverse(params, z, condition)
        return x, -logdet


class Centred(MLPConditioner):
    """Takes the batch's mean away, as batch normalisation does: permutations of the batch do not show it."""

    @nn.compact
    def __call__(self, seen, condition, count):
        return MLPConditioner(width=6, depth=1, name="net")(seen - jnp.mean(seen, 0, keepdims=True), condition, count)


@pytest.mark.parametrize(
    "wrong", [Flipped(bijection=Coupling(conditioner=SMALL)), Coupling(transform=Additive(), conditioner=Centred())]
)
def test_the_suite_fails_what_is_wrong(wrong):
    with jax.enable_x64(True), pytest.raises(AssertionError):
        hold(wrong, data(VECTOR))


@pytest.mark.parametrize(
    "name",
    tiers(
        ["additive", "spline", "checkerboard, resnet", "factored out", "Glow", "NICE"],
        first=("additive", "spline", "factored out", "NICE"),
    ),
)
def test_backward_from_the_output_alone_is_autodiff(name):
    """`backward` of every bijection that has its own, against `jax.vjp` of `forward`."""
    bijection, shape = BIJECTIONS[name]
    with jax.enable_x64(True):
        x, key = data(shape, batch=16), jax.random.key(1, impl="unsafe_rbg")
        params = perturbed(quick_jit(bijection.init)(key, x), key, 0.1)

        @quick_jit
        def both(params, x):
            trained, constants = split(params)
            (z, logdet), vjp = jax.vjp(lambda p, x: bijection.forward(merge(p, constants), x), trained, x)
            bars = (jnp.cos(z), jnp.sin(logdet))
            back, x_bar, params_bar, _ = bijection.backward(params, z, None, *bars)
            return (*vjp(bars), x), (params_bar, x_bar, back)

        theirs, ours = both(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), theirs, ours)


PLANE = {
    "affine": (Coupling(conditioner=SMALL), ClassNormal(num_classes=2)),
    "spline": (Coupling(transform=RationalQuadratic(bins=4), conditioner=SMALL), Normal()),
    "maf": (Autoregressive(net=MADE(width=8, depth=1)), Normal()),
    "additive": (Coupling(transform=Additive(), conditioner=SMALL), Logistic()),
}


@pytest.mark.parametrize("name", tiers(list(PLANE), first=("additive",)))
def test_a_density_in_the_plane_integrates_to_one(name):
    layer, prior = PLANE[name]
    flow = Flow(bijection=Chain(parts=(layer, Reverse(), layer)), prior=prior)
    side = np.linspace(-20.0, 20.0, 1001)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
    variables = perturbed(jax.jit(flow.init)(jax.random.key(0), {"x": grid[:4]}), jax.random.key(5))
    keys = jax.random.split(jax.random.key(0), len(grid))
    label = {"label": jnp.ones(len(grid), jnp.int32)}
    log_prob = quick_jit(flow.log_prob)(variables, keys, grid, label)
    density = np.exp(np.asarray(log_prob, np.float64))
    assert density.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1.0, abs=2e-3)
    # Samples are of that density: the mean of −log p over them is the integral of −p·log p.
    draws = FlowSampler()(flow, variables, keys[:20_000], {"label": label["label"][:20_000]}, (2,)).x
    entropy = -np.mean(flow.log_prob(variables, keys[:20_000], draws, {"label": label["label"][:20_000]}))
    integral = -np.sum(density * np.log(np.maximum(density, 1e-300))) * (side[1] - side[0]) ** 2
    assert entropy == pytest.approx(integral, abs=0.05)


@pytest.mark.parametrize(("prior", "std"), [(Normal(), 1.0), (Logistic(), np.pi / np.sqrt(3)), (Uniform(), 12**-0.5)])
def test_priors_draw_what_they_say(prior, std):
    keys = jax.random.split(jax.random.key(0), 20_000)
    z = np.asarray(prior.sample({}, keys, (2,)))
    assert z.std() == pytest.approx(std, rel=0.02)
    # E[log p] is minus the entropy: 1.4189, 2 and 0 nats a dimension.
    entropy = {1.0: 1.4189, 12**-0.5: 0.0}.get(std, 2.0)
    assert -np.asarray(prior.log_prob({}, jnp.asarray(z))).mean() / 2 == pytest.approx(entropy, abs=0.02)
    cold = np.asarray(prior.sample({}, keys, (2,), temperature=0.5))
    np.testing.assert_allclose(cold - cold.mean(), 0.5 * (z - z.mean()), atol=1e-5)


IDENTITY = Flow(
    bijection=Identity(), prior=Uniform(), preprocess=Unit(levels=256), dequantize=UniformDequantization(levels=256)
)


def measured(flow, x, batch=64):
    levels = jnp.asarray(x, jnp.float32)
    variables = flow.init(jax.random.key(0), {"x": levels[:batch]})
    objective = NegativeLogLikelihood()(flow, variables, jax.random.key(1), {"x": levels}, jnp.asarray(0))
    return np.asarray(objective.metrics["bits_per_dim"])


def test_no_flow_under_a_uniform_prior_is_eight_bits():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3)) * (2.0 / 255.0) - 1.0
    np.testing.assert_allclose(measured(IDENTITY, pixels), 8.0, rtol=0, atol=5e-7 * 8)


def test_scaling_costs_no_bits():
    """A factor of 8 and back: the same 8 bits, where a forgotten log-determinant gives 5 or 11."""
    wide = replace(IDENTITY, bijection=Chain(parts=(Scale(scale=8.0), Scale(scale=0.125))))
    pixels = np.zeros((8, 4, 4, 1))
    np.testing.assert_allclose(measured(wide, pixels), 8.0, atol=1e-5)


def test_bits_of_a_density_known_exactly():
    """Levels of a discretised logistic: no density has fewer bits than their entropy, the logistic itself few more."""
    levels, spread = 64, 0.12
    edges = np.linspace(0.0, 1.0, levels + 1)
    cdf = 1.0 / (1.0 + np.exp(-(edges - 0.5) / spread * 2.0))
    p = np.diff(cdf) / (cdf[-1] - cdf[0])
    entropy = -(p * np.log2(p)).sum()
    rng = np.random.default_rng(0)
    x = rng.choice(levels, (4000, 4), p=p) * (2.0 / (levels - 1)) - 1.0
    flow = Flow(
        bijection=Scale(scale=2.0 / spread, shift=-1.0 / spread),
        prior=Logistic(),
        preprocess=Unit(levels=levels),
        dequantize=UniformDequantization(levels=levels),
    )
    bits = measured(flow, x)
    assert bits.mean() == pytest.approx(entropy - np.log2(cdf[-1] - cdf[0]), abs=0.02)


def test_the_papers_nats_and_bits_are_one_number():
    """NICE's published pair for MNIST, and what our metric says of the same numbers."""
    assert float(bits_per_dim(1980.50, 784, 1.0 / 256.0)) == pytest.approx(4.36, abs=0.005)


def test_the_metric_gives_both(key):
    from data.digits import Digits
    from metrics.metric import Evaluation

    flow = replace(IDENTITY, preprocess=Unit(levels=17), dequantize=UniformDequantization(levels=17))
    variables = flow.init(key, {"x": jnp.zeros((2, 8, 8, 1))})
    numbers = FlowLikelihood(examples=8, split="train")(
        Evaluation(flow, variables, Digits(), lambda n: np.zeros((n, 8, 8, 1)))
    )
    assert numbers["bits_per_dim_of_train"] == pytest.approx(np.log2(17.0), abs=1e-5)
    assert numbers["nats_on_unit_cube_of_train"] == pytest.approx(0.0, abs=1e-3)
    back = bits_per_dim(numbers["nats_on_unit_cube_of_train"], 64, 1.0 / 17.0)
    assert float(back) == pytest.approx(numbers["bits_per_dim_of_train"], abs=1e-5)


@pytest.mark.thorough
def test_variational_dequantisation_says_its_own_density():
    """−log q against the change of variables of u, and the mean of 1/q over u in the cube: 1."""
    with jax.enable_x64(True):
        inner = Chain(parts=tuple(Coupling(conditioner=RESNET, mask=Checkerboard(swap=s)) for s in (False, True)))
        fill = VariationalDequantization(levels=17, bijection=inner)
        x = jnp.round(data((2, 2, 1), batch=1) * 4) / 8
        params = perturbed(fill.init(jax.random.key(0), x), jax.random.key(3))
        keys = jax.random.split(jax.random.key(4), 4000)
        y, minus_log_q = quick_jit(fill)(params, keys, jnp.broadcast_to(x, (4000, 2, 2, 1)))
        assert np.abs(y - x).max() <= 1.0 / 16.0
        # E_q[1/q] is the volume of the cube of bins.
        volume = np.exp(minus_log_q).mean() / (2.0 / 16.0) ** 4
        assert volume == pytest.approx(1.0, abs=0.1)


def test_what_is_not_trained_is_kept_apart_and_saved(key):
    flow = Flow(bijection=Chain(parts=(Invertible1x1(), FixedPermutation())))
    variables = flow.init(key, {"x": jax.random.normal(key, (4, 5))})
    assert all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(variables["params"]))
    constants = variables["state"]["constants"]["bijection"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(constants)} == {"int8", "int32"}
    assert sorted(np.asarray(constants["1"]["order"])) == list(range(5))
    x = jax.random.normal(key, (3, 5))
    z = flow.encode(variables, jax.random.split(key, 3), x)
    np.testing.assert_allclose(flow.decode(variables, z), x, atol=1e-5)


def test_a_first_batch_standardises():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    params = ActNorm().init(jax.random.key(0), x)
    z, _ = ActNorm().forward(params, x)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1.0, atol=1e-4)


@pytest.mark.thorough
def test_one_device_equals_eight():
    """Actnorm's first statistics, the loss and its gradient: all of the global batch."""
    found = []
    for devices in (1, 8):
        experiment = load_experiment("glow_digits", tiny=True)
        plan = Plan(replace(experiment, batch_size=16, mesh=replace(experiment.mesh, data=devices), metrics=()))
        state = plan.initial()
        start = jax.device_get(state.params)
        state, metrics = plan.train_step(state, plan.batches[0])
        found.append((start, jax.device_get(state.optimizer), jax.device_get(metrics)))
    (one, one_moments, one_metrics), (eight, eight_moments, eight_metrics) = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), one, eight)
    # Adam's first moment after a step is a tenth of the gradient.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one_moments, eight_moments)
    assert one_metrics["loss"] == pytest.approx(eight_metrics["loss"], rel=1e-5)
    assert one_metrics["gradient_norm"] == pytest.approx(eight_metrics["gradient_norm"], rel=1e-4)
