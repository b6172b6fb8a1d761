"""Drawing from flows, editing with their latents, and what sample.py and train.py say of them."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data.pixels import to_model_space
from losses.likelihood import NegativeLogLikelihood
from models.flows.bijection import Bijection, zeros
from models.flows.cnf import CNF
from models.flows.combinators import Chain, Identity
from models.flows.conditioners import MLPConditioner
from models.flows.coupling import Coupling
from models.flows.dequantization import UniformDequantization
from models.flows.flow import Flow
from models.flows.glow import Glow
from models.flows.linear import DiagonalScale
from models.flows.masks import Checkerboard, Halves
from models.flows.permutations import Reverse
from models.flows.priors import ClassNormal, Logistic, Normal
from models.flows.reshaping import Squeeze, Vectors
from models.mlp import MLP
from samplers.flow import AscentInpainting, AttributeEdit, FlowSampler, Interpolation, attribute_direction
from samplers.integrators import Adaptive
from samplers.sampler import sample_keys
from tests.flows import perturbed
from tests.scripts import here
from tests.test_guidance import trained
from training.cli import load_experiment
from training.config import decode, encode
from training.draw import Drawer
from training.errors import UserError
from training.inputs import example_batch
from training.mesh import Mesh
from training.plan import Plan
from training.run import Run

KEYS = sample_keys(jax.random.key(3), jnp.arange(6))
FLOW = Flow(
    bijection=Vectors(
        bijection=Chain(parts=(Coupling(conditioner=MLPConditioner(width=8, depth=1)), Reverse())),
    ),
    prior=ClassNormal(num_classes=3),
)
SHAPE = (2, 2, 1)
VARIABLES = perturbed(jax.jit(FLOW.init)(jax.random.key(0), {"x": jnp.zeros((2, *SHAPE))}), jax.random.key(1))
X = jax.random.normal(jax.random.key(2), (6, *SHAPE))


def test_a_sample_is_its_keys_alone_on_any_mesh():
    label = {"label": jnp.arange(6, dtype=jnp.int32) % 3}
    one = FlowSampler()(FLOW, VARIABLES, KEYS[2:3], {"label": label["label"][2:3]}, SHAPE).x
    eight = Drawer(FLOW, FlowSampler(), SHAPE, Mesh(data=8).build())(VARIABLES, jax.random.key(3), 6, label).x
    np.testing.assert_allclose(one[0], eight[2], atol=1e-5)


def test_temperature_scales_latents_around_their_mean():
    label = {"label": jnp.zeros(6, jnp.int32)}
    mean = VARIABLES["params"]["prior"]["mean"][:1]
    draw = lambda t: FlowSampler(temperature=t)(FLOW, VARIABLES, KEYS, label, SHAPE).x  # noqa: E731
    hot, half, cold = (FLOW.encode(VARIABLES, KEYS, draw(t), label) for t in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half - mean, 0.5 * (hot - mean), atol=1e-4)
    np.testing.assert_allclose(cold, jnp.broadcast_to(mean, cold.shape), atol=1e-4)
    with pytest.raises(ValueError, match="negative"):
        FlowSampler(temperature=-1.0)


def test_interpolation_ends_at_both_images_and_bends_between():
    condition = {"start": X[:3], "end": X[3:], "fraction": jnp.asarray([0.0, 0.5, 1.0])}
    x = Interpolation()(FLOW, VARIABLES, KEYS[:3], condition, SHAPE).x
    np.testing.assert_allclose(x[0], X[0], atol=1e-4)
    np.testing.assert_allclose(x[2], X[5], atol=1e-4)
    assert np.abs(x[1] - 0.5 * (X[1] + X[4])).max() > 1e-3
    with pytest.raises(ValueError, match="needs start and end and fraction"):
        Interpolation()(FLOW, VARIABLES, KEYS, None, SHAPE)


def test_an_attribute_is_a_direction_in_latent_space():
    has = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    direction = attribute_direction(FLOW, VARIABLES, KEYS, X, has)
    z = FLOW.encode(VARIABLES, KEYS, X)
    np.testing.assert_allclose(direction, z[:3].mean(0) - z[3:].mean(0), atol=1e-5)
    condition = {"image": X, "direction": jnp.broadcast_to(direction, X.shape), "strength": jnp.full(6, 0.3)}
    edited = AttributeEdit()(FLOW, VARIABLES, KEYS, condition, SHAPE).x
    np.testing.assert_allclose(FLOW.encode(VARIABLES, KEYS, edited), z + 0.3 * direction[None], atol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Differences(Bijection):
    """Each pixel but the first, less the one before it."""

    def forward(self, params, x, condition=None):
        flat = x.reshape(x.shape[0], -1)
        return jnp.concatenate([flat[:, :1], jnp.diff(flat, axis=1)], axis=1).reshape(x.shape), zeros(x)

    def inverse(self, params, z, condition=None):
        return jnp.cumsum(z.reshape(z.shape[0], -1), axis=1).reshape(z.shape), zeros(z)


def test_what_is_filled_in_agrees_with_what_is_known():
    """The likeliest pixel between two that are 0.8 is 0.8; if these were let go on the way, all would go to 0."""
    flow = Flow(bijection=Differences(), prior=Normal())
    known, mask = jnp.full((6, *SHAPE), 0.8), jnp.asarray([1.0, 0.0, 1.0, 0.0]).reshape(1, *SHAPE)
    condition = {"known": known, "mask": mask}
    found = AscentInpainting(steps=300, noise=0.0)(flow, {"params": {}, "state": {}}, KEYS, condition, SHAPE).x
    np.testing.assert_allclose(found, 0.8, atol=2e-2)


def test_inpainting_keeps_what_is_known_and_climbs():
    flow = Flow(bijection=Identity(), prior=Logistic())
    known, mask = jnp.full((6, *SHAPE), 0.5), jnp.asarray([1.0, 0.0, 0.0, 1.0]).reshape(1, *SHAPE)
    condition = {"known": known, "mask": jnp.broadcast_to(mask, known.shape)}
    found = AscentInpainting(steps=300, noise=0.0)(flow, {"params": {}, "state": {}}, KEYS, condition, SHAPE, True)
    np.testing.assert_array_equal(found.x[:, 0, 0], known[:, 0, 0])
    np.testing.assert_allclose(found.x[:, 0, 1], 0.0, atol=2e-2)  # the mode of a logistic, within a step of 2/400 or so
    assert found.trajectory is not None
    assert found.trajectory.shape == (300, 6, *SHAPE)
    moving = AscentInpainting(steps=20)(flow, {"params": {}, "state": {}}, KEYS, condition, SHAPE).x
    assert np.abs(moving).max() <= 1.0
    assert np.asarray(moving)[:, 0, 1].std() > 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halves().split(jnp.zeros((2, 4, 4, 1))), "nothing to split. Squeeze"),
        (lambda: Checkerboard().split(jnp.zeros((2, 4))), "checkerboard is of images"),
        (
            lambda: Squeeze().forward({}, jnp.zeros((2, 5, 4, 1))),
            "a squeeze takes images whose sides 2 divides, not 5x4",
        ),
        (lambda: Glow(levels=3).init(jax.random.key(0), jnp.zeros((2, 28, 28, 1))), "sides 8 divides, not 28x28"),
        (lambda: Glow(levels=1).init(jax.random.key(0), jnp.zeros((2, 28))), "arrays with 1 axes"),
        (lambda: FLOW.init(jax.random.key(0), {"x": jnp.zeros((2, *SHAPE), jnp.uint8)}), "this is uint8"),
        (lambda: FLOW.check({"params": {"1": {"weight": jnp.ones((2, 3, 3))}}, "state": {}}), "1.weight: smallest"),
        (lambda: replace(FLOW, init_batches=0), "at least one batch"),
        (lambda: replace(FLOW, bijection=Coupling(conditioner=MLPConditioner(num_classes=2))).num_classes, "2, 3"),
        (
            lambda: Flow(bijection=Squeeze()).init(jax.random.key(0), {"x": jnp.zeros((2, 4, 4, 1))}),
            "have \\(2, 2, 4\\)",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "does not divide over 8 devices"),
        ({"data": load_experiment("spline_toy").data}, "does not fit the data, which is continuous"),
        ({"levels": 256}, "does not fit the data, which has 17 levels"),
        ({"loss": NegativeLogLikelihood(kinetic=0.1)}, "kinetic_energy is of a continuous flow"),
    ],
)
def test_training_refuses_what_does_not_fit(changes, message):
    experiment = load_experiment("glow_digits", tiny=True)
    if "levels" in changes:
        dequantize = UniformDequantization(levels=changes["levels"])
        changes = {"model": replace(experiment.model, dequantize=dequantize)}
    if "data" in changes:
        changes = changes | {"model": replace(experiment.model, prior=Logistic())}
    with pytest.raises(UserError, match=message):
        Plan(
            replace(experiment, batch_size=16, **changes)
            if "batch_size" not in changes
            else replace(experiment, **changes)
        )


def test_a_flows_configuration_survives_json():
    for name in ("glow_cifar10", "tarflow_mnist", "ffjord_mnist", "realnvp_digits", "maf_tabular", "nice_mnist"):
        experiment = load_experiment(name)
        assert decode(encode(experiment)) == experiment


def test_precision_reaches_every_network_of_a_flow():
    experiment = replace(load_experiment("ffjord_mnist"), precision="bfloat16", remat="full")
    parts = experiment.resolved_model().bijection.parts
    assert {parts[0].net.dtype, parts[3].bijection.parts[1].net.dtype} == {"bfloat16"}
    assert (parts[0].remat, parts[0].net.remat) == ("full", "none")  # of the integrator's steps, and nothing within
    flow = load_experiment("ffjord_toy").model
    adaptive = replace(experiment, model=replace(flow, bijection=CNF(net=MLP(width=4), integrator=Adaptive())))
    assert adaptive.resolved_model().bijection.net.remat == "full"  # whose steps are no chain


def test_glow_cifar10_is_the_papers_size():
    """44 million parameters at L 3, K 32, 512 channels."""
    model = load_experiment("glow_cifar10").resolved_model()
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"x": jnp.zeros((2, 32, 32, 3))})
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == pytest.approx(44e6, rel=0.05)


@pytest.mark.parametrize("name", ["glow_cifar10", "realnvp_cifar10"])
def test_cifar10s_tiny_forms_trace_and_the_reversible_one_says_how_far_off_it_is(name):
    experiment = load_experiment(name, tiny=True)
    model = experiment.resolved_model()
    batch = {"x": jnp.zeros((8, 32, 32, 3))}

    def measured(key):
        variables = model.init(key, batch)
        return experiment.loss(model, variables, key, batch, jnp.asarray(0)).metrics

    metrics = jax.eval_shape(measured, jax.random.key(0))
    assert ("reconstruction_error" in metrics) == (name == "glow_cifar10")


def test_a_run_begins_from_the_statistics_of_its_first_batches():
    """Not from zeros, nor from a batch that is not the run's, nor from one where two are asked for."""
    flow = Flow(bijection=DiagonalScale(standardise=1.0), prior=Logistic())
    tiny = replace(load_experiment("spline_toy", tiny=True), model=replace(flow, init_batches=2), metrics=())
    plan = Plan(replace(tiny, mesh=Mesh(data=2)))
    x = np.concatenate([plan.batches[i]["x"] for i in (0, 1)])
    found = plan.initial().params["bijection"]["log_scale"]
    np.testing.assert_allclose(found, -np.log(x.std(axis=0)), rtol=1e-4)


@pytest.mark.thorough
def test_a_checkpoint_and_a_run_that_begins_from_it_keep_what_is_not_trained(run):
    """P and sign(S) of another seed would make L, U and log s mean another matrix."""
    tiny = replace(load_experiment("glow_digits", tiny=True), seed=1, mesh=Mesh(data=1))
    model = tiny.resolved_model()
    found, _ = Run(run).averaged(model, example_batch(tiny), Mesh(data=1).build())
    own, other = (Plan(replace(tiny, seed=seed)).initial().model for seed in (1, 0))
    jax.tree.map(np.testing.assert_array_equal, found["state"], own)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (own, other)), strict=True))
    handed = Plan(replace(tiny, seed=0, steps=2, initial=str(run))).initial()
    jax.tree.map(np.testing.assert_array_equal, handed.model, found["state"])
    jax.tree.map(np.testing.assert_array_equal, handed.params, found["params"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tiny = replace(load_experiment("glow_digits", tiny=True), seed=1, mesh=Mesh(data=1))
    return trained(tmp_path_factory.mktemp("flow") / "glow", tiny, steps=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 8))
    files = {name: folder / f"{name}.png" for name in ("a", "b", "mask")}
    for file, pixels in zip(files.values(), levels, strict=True):
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return files


def test_sample_draws_interpolates_and_inpaints(run, images, tmp_path):
    found = {}
    for name, flags, cost in (
        ("plain", ("--temperature", "0.5", "--label", "3"), "1 inverse pass"),
        ("between", ("--interpolate", images["a"], images["b"], "--label", "1"), "3 passes"),
        ("filled", ("--inpaint", images["mask"], images["a"], "--label", "1"), "1000 gradients"),
    ):
        code, out, err = here("sample.py", run, "--n", "3", *flags, "--out", tmp_path)
        assert code == 0, err
        assert cost in out
        found[name] = dict(np.load(tmp_path / "samples.npz"))
    assert (found["plain"]["label"] == 3).all()
    a = to_model_space(np.asarray(Image.open(images["a"])))[..., None]
    np.testing.assert_allclose(found["between"]["x"][0], a, atol=1e-3)
    known = np.asarray(Image.open(images["mask"]))[..., None] > 127
    np.testing.assert_array_equal(found["filled"]["x"][1][known], a[known])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--guidance", "3"), "is a flow: it can --inpaint and --interpolate, and --guidance is of diffusion"),
        (("--inpaint", "{mask}", "{a}", "--interpolate", "{a}", "{b}"), "one at a time"),
        (("--interpolate", "{a}", "nowhere.png"), "there is no image nowhere.png"),
        (("--interpolate", "{a}", "{b}"), "say with --label of which class"),
        (("--inpaint", "{mask}", "{a}", "--temperature", "0.5"), "--temperature has no meaning with it"),
        (("--temperature", "-1"), "temperature=-1.0 is negative"),
    ],
)
def test_samples_mistakes(run, images, flags, message):
    code, _, err = here("sample.py", run, *(flag.format(**images) for flag in flags))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
