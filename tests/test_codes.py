"""Two stages: what the first makes is what the second reads, and of no other checkpoint; every experiment of both."""

import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from data.digits import Digits
from metrics.class_accuracy import ClassAccuracy
from metrics.confidence import Confidence
from metrics.flow_likelihood import FlowLikelihood
from metrics.metric import Evaluation
from metrics.token_likelihood import TokenLikelihood
from metrics.two_stage import TwoStageLikelihood
from models.bottlenecks import Plain
from models.flows.causal import CausalTransformer
from models.flows.dequantization import Continuous
from models.flows.flow import Flow
from models.flows.tarflow import TarFlow
from tests.conftest import needs, tiers
from training.cli import load_experiment
from training.codes import Codes, Latents
from training.codes import _encoded as encoded
from training.edit import Edit, edited
from training.errors import UserError
from training.inputs import default_condition, example_batch
from training.loop import train
from training.mesh import Mesh
from training.run import Run

PRIORS = ("transformer", "pixelcnn", "lstm", "masked")
MNIST = ("vqvae_mnist", "fsq_mnist", "rvq_mnist", "vqvae2_mnist")


def short(name, **changes):
    """Its tiny form in two steps."""
    return replace(load_experiment(name, tiny=True), **({"steps": 2, "sample_every": 0} | changes))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of a first stage."""
    folder = tmp_path_factory.mktemp("first") / "digits"
    train(short("vqvae_digits", metrics=()), folder)
    return folder


@pytest.fixture
def variables(first):
    experiment = Run(first).experiment()
    model = experiment.resolved_model()
    return model, Run(first).averaged(model, example_batch(experiment), Mesh().build())[0]


def second(name, folder, **changes):
    data = replace(load_experiment(name, tiny=True).data, codes=str(folder))
    return short(name, data=data, **changes)


def test_codes_are_the_first_stages_and_are_made_once(first, variables, monkeypatch):
    model, found = variables
    data = Codes(codes=str(first))
    images = Digits().arrays("test", 50)
    arrays = data.arrays("test", 50)
    np.testing.assert_array_equal(arrays["x"], model.encode(found, jnp.asarray(images["x"])))
    np.testing.assert_array_equal(arrays["label"], images["label"])
    assert arrays["x"].dtype == np.int32
    assert (data.shape, data.vocabulary, data.grid, data.num_classes) == ((16,), 8, (4, 4), 10)
    assert data.pictured == Digits()
    codes = jnp.asarray(arrays["x"])
    np.testing.assert_allclose(data.shown(arrays["x"]), model.decode(found, codes, (8, 8, 1)), atol=1e-5)
    wanted = model.log_prob(found, codes, jnp.asarray(images["x"]))
    np.testing.assert_allclose(data.log_prob_of_images("test", 50), wanted, rtol=1e-4)

    encoded.cache_clear()
    monkeypatch.setattr(Codes, "make", lambda *_: pytest.fail("encoded a second time"))
    np.testing.assert_array_equal(data.arrays("test", 50)["x"], arrays["x"])


@pytest.mark.thorough
def test_latents_are_centred_and_scaled_and_decode(first, variables):
    model, found = variables
    data = Latents(codes=str(first))
    train_split = data.arrays("train", 10_000)["x"]
    assert data.shape == (4, 4, 4)
    np.testing.assert_allclose(train_split.mean(axis=(0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(train_split.std(axis=(0, 1, 2)), 1.0, atol=1e-3)
    images = Digits().arrays("test", 30)["x"]
    shown = data.shown(data.arrays("test", 30)["x"])
    close = np.isclose(shown, model.reconstruct(found, jnp.asarray(images)).image, atol=1e-3)
    assert close.mean() > 0.99  # a latent on the border of two codes may fall to the other
    assert data.bin_width is None
    with pytest.raises(ValueError, match="no probability of images"):
        data.log_prob_of_images("test", 3)


def test_a_first_stage_is_shown_images_of_the_test_split(first, variables):
    """By sample.py and by train.py: it draws nothing of its own."""
    experiment = Run(first).experiment()
    wanted = Digits().arrays("test", 3)["x"]
    plan = edited(Edit(), experiment.sampler, first, experiment)
    for condition in (
        plan.condition(variables[0], experiment.data, 3, None),
        default_condition(variables[0], experiment.data, 3),
    ):
        np.testing.assert_array_equal(condition["image"], wanted)
    experiment = second("latent_diffusion_mnist", first)
    with pytest.raises(UserError, match="codes or latents"):
        edited(Edit(inpaint=(first, first)), experiment.sampler, first, experiment)


def test_two_stages_cost_the_sum_of_their_parts(first, tmp_path):
    train(second("vqvae_prior_transformer", first, metrics=()), tmp_path / "prior")
    run = Run(tmp_path / "prior")
    experiment = run.experiment()
    model = experiment.resolved_model()
    found, _ = run.averaged(model, example_batch(experiment), Mesh().build())
    data = experiment.data
    assert data.made_of == json.loads((first / "summary.json").read_text())["state_digest"]
    evaluation = Evaluation(model, found, data, lambda n: data.arrays("test", n)["x"])
    numbers = TwoStageLikelihood(examples=60)(evaluation)
    of_tokens = TokenLikelihood(examples=60)(evaluation)
    images = -data.log_prob_of_images("test", 60).mean() / (64 * math.log(2))
    assert numbers["bits_per_dim_of_codes_given_label"] == pytest.approx(
        of_tokens["bits_per_token_given_label"] * 16 / 64, rel=1e-5
    )
    assert numbers["bits_per_dim_of_images_given_label"] == pytest.approx(images, rel=1e-5)
    total = numbers["bits_per_dim_of_codes_given_label"] + numbers["bits_per_dim_of_images_given_label"]
    assert numbers["bits_per_dim_given_label"] == pytest.approx(total, rel=1e-6)
    assert numbers["bits_per_dim_stderr_given_label"] > 0
    # Its samples are looked at as images.
    assert evaluation.pictures(3).shape == (3, 8, 8, 1)
    assert set(Confidence(samples=20)(evaluation)) == {"confident", "confident_of_test"}
    assert 0.0 <= ClassAccuracy(samples=20)(evaluation)["class_accuracy"] <= 1.0
    with pytest.raises(ValueError, match="first stage's codes"):
        TwoStageLikelihood().check(Digits())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    tiers([*(f"vqvae_prior_{name}" for name in PRIORS), "latent_diffusion_mnist"], first=("vqvae_prior_lstm",)),
)
def test_every_second_stage_trains_and_is_measured(name, first, tmp_path):
    summary = train(second(name, first), tmp_path / name)
    assert math.isfinite(summary["loss"])
    assert 0.0 <= summary["confident"] <= 1.0


@pytest.mark.thorough
def test_a_flow_is_a_prior_over_latents(first, tmp_path):
    net = CausalTransformer(width=8, depth=1, heads=2, num_classes=10)
    model = Flow(bijection=TarFlow(patch=1, blocks=2, net=net), dequantize=Continuous())
    metrics = (FlowLikelihood(examples=8), ClassAccuracy(samples=10))
    experiment = short("tarflow_mnist", data=Latents(codes=str(first)), model=model, metrics=metrics)
    summary = train(experiment, tmp_path / "flow")
    assert math.isfinite(summary["nll_given_label"])
    assert 0.0 <= summary["class_accuracy"] <= 1.0


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        "vqvae_digits",
        *(pytest.param(name, marks=needs("mnist")) for name in MNIST),
        pytest.param("vqvae_cifar10", marks=needs("cifar10")),
    ],
)
def test_every_first_stage_trains_and_is_measured(name, tmp_path):
    summary = train(short(name), tmp_path / name)
    assert math.isfinite(summary["loss"])
    assert summary["normalised_error"] > 0


@pytest.mark.thorough
def test_a_first_stage_that_was_trained_anew_is_refused_and_so_is_its_cache(first, tmp_path):
    other = tmp_path / "other"
    train(short("vqvae_digits", metrics=()), other)
    train(second("vqvae_prior_lstm", other, metrics=()), tmp_path / "prior")
    kept = (other / "codes" / "codes_train.npz").read_bytes()
    train(short("vqvae_digits", metrics=(), seed=1), other, restart=True)
    assert not (other / "codes").exists()
    experiment = Run(tmp_path / "prior").experiment()
    with pytest.raises(UserError, match="trained anew"):
        experiment.resolved_model()
    (other / "codes").mkdir()
    (other / "codes" / "codes_train.npz").write_bytes(kept)
    with pytest.raises(UserError, match="made by another checkpoint or codebook"):
        Codes(codes=str(other)).arrays("train", 3)
    (other / "codes" / "codes_train.npz").write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be read"):
        Codes(codes=str(other)).arrays("train", 3)


@pytest.mark.thorough
def test_what_is_no_first_stage_is_refused(first, tmp_path):
    with pytest.raises(ValueError, match="code 8 is out of range"):
        Codes(codes=str(first)).shown(np.asarray([[0] * 15 + [8]], np.int32))
    with pytest.raises(ValueError, match="code -1 is out of range"):
        Codes(codes=str(first)).shown(np.asarray([[-1] * 16], np.int32))
    with pytest.raises(UserError, match="holds no run"):
        train(second("vqvae_prior_lstm", tmp_path / "nowhere"), tmp_path / "prior")
    train(short("pixel_lstm", metrics=()), tmp_path / "pixels")
    with pytest.raises(UserError, match="codes are a VQVAE's or VQVAE2's, not a LanguageModel's"):
        train(second("vqvae_prior_lstm", tmp_path / "pixels"), tmp_path / "prior")
    plain = short("vqvae_digits", metrics=())
    train(replace(plain, model=replace(plain.model, quantizer=Plain(width=4))), tmp_path / "plain")
    with pytest.raises(UserError, match="Plain bottleneck has no codes"):
        train(second("vqvae_prior_lstm", tmp_path / "plain"), tmp_path / "prior")
    with pytest.raises(UserError, match="cannot be its own folder"):
        train(second("vqvae_prior_lstm", first), first)
    with pytest.raises(UserError, match="sides 7 divides, not 8x8"):
        train(replace(short("vqvae2_mnist"), data=Digits()), tmp_path / "odd")
