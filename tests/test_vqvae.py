"""First stages: there and back, what the likelihood adds up to, and what does not fit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.reconstruction import Reconstruction
from metrics.metric import Evaluation
from metrics.reconstruction_error import ReconstructionError
from models.autoencoder import ConvDecoder, ConvEncoder
from models.bottlenecks import NormalPosterior, Plain
from models.codebook import EMA, VQ
from models.fsq import FSQ
from models.observation import Categorical, Gaussian, Logistic
from models.residual_vq import ResidualVQ
from models.vit_autoencoder import ViTDecoder, ViTEncoder
from models.vqvae import VQVAE
from models.vqvae2 import VQVAE2
from samplers.reconstruct import Reconstruct
from tests.conftest import tiers
from tests.flows import perturbed
from training.cli import load_experiment

VIT = {"encoder": ViTEncoder(width=8, depth=1, heads=2), "decoder": ViTDecoder(width=8, depth=1, heads=2)}
CONV = {"encoder": ConvEncoder(width=8, depth=1), "decoder": ConvDecoder(width=8, depth=1)}
MODELS = {
    "conv": VQVAE(**CONV, quantizer=VQ(size=6, width=3, heads=2), observation=Gaussian(), levels=17),
    "vit": VQVAE(**VIT, quantizer=EMA(size=6, width=3), observation=Logistic(), levels=17),
    "residual": VQVAE(
        **VIT, quantizer=ResidualVQ(codebook=EMA(size=6, width=3), depth=2), observation=Categorical(), levels=17
    ),
    "fsq": VQVAE(**VIT, quantizer=FSQ(levels=(3, 2)), observation=Gaussian(scale=0.3), levels=17),
    "two": VQVAE2(
        encoder=ViTEncoder(width=8, depth=1, heads=2, patch=2),
        top_encoder=ConvEncoder(width=8, depth=1, reduction=2),
        top_quantizer=EMA(size=6, width=3),
        top_decoder=ConvDecoder(width=8, depth=1, reduction=2),
        quantizer=ResidualVQ(codebook=EMA(size=6, width=4), depth=2),
        decoder=ViTDecoder(width=8, depth=1, heads=2, patch=2),
        width=8,
        levels=17,
    ),
}
SHAPE = (8, 12, 2)


def case(model, size=4, shape=SHAPE):
    """(variables, images in 17 levels); no parameter at its start."""
    x = jax.random.randint(jax.random.key(0), (size, *shape), 0, 17) / 8.0 - 1.0
    variables = jax.jit(model.init)(jax.random.key(1), {"x": x})
    return {**variables, "params": jax.jit(perturbed)(variables["params"], jax.random.key(2))}, x


def near(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.thorough
def test_a_vaes_rate_is_measured_whole_and_counted_in_part():
    x = jax.random.randint(jax.random.key(0), (4, 8, 8, 1), 0, 17) / 8.0 - 1.0
    model = VQVAE(**CONV, quantizer=NormalPosterior(width=3, beta=0.25), observation=Gaussian(scale=0.3), levels=17)
    variables, key = jax.jit(model.init)(jax.random.key(1), {"x": x}), jax.random.key(2)
    found = jax.jit(model.reconstruct)(variables, x, key)
    assert float(found.kl.min()) > 0.0
    near(found.weighted_kl, 0.25 * found.kl)
    loss = Reconstruction()(model, variables, key, {"x": x}, jnp.zeros((), int))
    near(loss.value, (0.25 * found.kl - found.log_prob) / 64, 1e-4)


@pytest.mark.parametrize("model", tiers(MODELS, first=("fsq",)))
def test_codes_say_what_is_reconstructed(model):
    variables, x = case(model)
    found = jax.jit(model.reconstruct)(variables, x)
    codes = jax.jit(model.encode)(variables, x)
    assert codes.shape == (4, model.length(SHAPE))
    assert int(codes.max()) < model.codes
    assert len(np.unique(codes)) > 1
    decode = jax.jit(lambda v, c: model.decode(v, c, SHAPE))
    near(decode(variables, codes), found.image)
    near(jax.jit(model.log_prob)(variables, codes, x), found.log_prob, 1e-3)
    assert float(jnp.abs(found.image).max()) <= 1.0
    grid = model.grid(SHAPE)
    assert (grid is None) if isinstance(model, VQVAE2) else (grid[0] * grid[1] == codes.shape[1])
    other = (codes + 1) % model.codes
    assert float(jnp.abs(decode(variables, other) - found.image).max()) > 1e-3


@pytest.mark.parametrize("model", tiers(MODELS, first=("fsq",)))
def test_every_part_of_it_learns(model):
    variables, x = case(model)

    def loss(params):
        value, _, state = Reconstruction()(
            model, {**variables, "params": params}, jax.random.key(3), {"x": x}, jnp.zeros((), jnp.int32)
        )
        return jnp.mean(value), state

    gradients, state = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all()
        assert np.any(leaf), path
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])
    if state and jax.tree.leaves(state):
        moved = [
            np.any(a != b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(variables["state"]), strict=True)
        ]
        assert all(moved)


def test_the_codebook_is_out_of_the_encoders_reach_and_the_reverse():
    """Without the commitment and the reconstruction nothing moves the encoder; the codebook's term moves no encoder."""
    model = replace(MODELS["conv"], quantizer=VQ(size=6, width=3, heads=2, beta=0.0))
    variables, x = case(model)
    penalty = lambda params: jnp.sum(model.reconstruct({**variables, "params": params}, x).penalty)  # noqa: E731
    gradients = jax.jit(jax.grad(penalty))(variables["params"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((gradients["encoder"], gradients["decoder"])))
    assert np.any(gradients["quantizer"]["codebook"])
    said = lambda params: jnp.sum(model.reconstruct({**variables, "params": params}, x).log_prob)  # noqa: E731
    gradients = jax.jit(jax.grad(said))(variables["params"])
    assert not np.any(gradients["quantizer"]["codebook"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))


@pytest.mark.parametrize("observation", [Gaussian(), Gaussian(scale=0.01), Logistic(), Categorical()], ids=str)
def test_the_probabilities_of_all_levels_add_up_to_one(observation):
    """Of one pixel, whatever is said of it: also far outside, with a tiny scale and at the ends."""
    n = 17
    every = jnp.linspace(-1.0, 1.0, n).reshape(n, 1, 1, 1)
    for seed in range(6):
        said = 2.0 * jax.random.normal(jax.random.key(seed), (1, 1, 1, observation.features(1, n)))
        found = observation.log_prob(observation.init(), jnp.repeat(said, n, axis=0), every, n)
        near(jnp.sum(jnp.exp(found)), 1.0, 1e-4)
        mean = float(observation.mean(said, n)[0, 0, 0, 0])
        assert -1.0 <= mean <= 1.0
        if isinstance(observation, Categorical):
            near(jnp.sum(jnp.exp(found) * every[:, 0, 0, 0]), mean, 1e-5)
        else:
            likeliest = float(every[jnp.argmax(found), 0, 0, 0])
            # The outer bins are wider than the others, and may be likelier than the one that holds the mean.
            assert abs(likeliest - mean) <= 1.0 / (n - 1) + 1e-6 or abs(likeliest) == 1.0


def test_log_probabilities_far_out_are_finite_and_have_gradients():
    x = jnp.full((1, 2, 2, 1), 0.5)
    for observation in (Gaussian(scale=0.01), Logistic()):
        said = jnp.full((1, 2, 2, observation.features(1, 256)), -3.0)
        value, slope = jax.value_and_grad(lambda s: observation.log_prob({}, s, x, 256)[0])(said)  # noqa: B023
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
        assert float(slope[..., 0].min()) > 0.0  # towards x


def test_of_many_levels_the_probability_is_the_density_of_a_bin():
    said = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    x = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2), minval=-0.9, maxval=0.9)
    levels = 4097
    x = jnp.round((x + 1.0) * (levels - 1) / 2.0) * 2.0 / (levels - 1) - 1.0
    for observation, numbers in ((Gaussian(), said[..., :2]), (Logistic(), said)):
        params = observation.init()
        bins = observation.log_prob(params, numbers, x, levels)
        density = observation.log_prob(params, numbers, x, None)
        near(bins, density + 32 * np.log(2.0 / (levels - 1)), 0.05)


@pytest.mark.thorough
def test_an_autoencoder_and_a_vae_are_the_same_model():
    for bottleneck, coded in ((Plain(width=3), False), (NormalPosterior(width=3), False), (FSQ(levels=(3,)), True)):
        model = VQVAE(**VIT, quantizer=bottleneck, levels=17)
        variables, x = case(model)
        assert model.coded is coded
        z = jax.jit(model.latents)(variables, x)
        image = jax.jit(lambda v, z, model=model: model.from_latents(v, z, SHAPE))(variables, z)
        near(image, jax.jit(model.reconstruct)(variables, x).image)
        if not coded:
            with pytest.raises(ValueError, match="no codes"):
                model.encode(variables, x)


def test_what_does_not_fit_is_refused():
    x = jnp.zeros((1, 30, 28, 1))
    for model, said in ((MODELS["conv"], "halves 2 times"), (MODELS["vit"], "patches of 4x4")):
        with pytest.raises(ValueError, match=f"{said} takes images whose sides 4 divides, not 30x28"):
            jax.eval_shape(model.init, jax.random.key(0), {"x": x})
    with pytest.raises(ValueError, match="halves 1 times takes images whose sides 2 divides, not 5x5"):
        jax.eval_shape(MODELS["two"].init, jax.random.key(0), {"x": jnp.zeros((1, 10, 10, 1))})
    with pytest.raises(ValueError, match="both must be alike"):
        VQVAE(encoder=ViTEncoder(patch=2), decoder=ViTDecoder(patch=4))
    with pytest.raises(ValueError, match="both must be alike"):
        replace(MODELS["two"], top_decoder=ConvDecoder(reduction=4))
    with pytest.raises(ValueError, match="equally many codes"):
        replace(MODELS["two"], top_quantizer=EMA(size=7, width=3))
    with pytest.raises(ValueError, match="power of 2"):
        VQVAE(encoder=ConvEncoder(reduction=3), decoder=ConvDecoder(reduction=3)).init(jax.random.key(0), {"x": x})
    with pytest.raises(ValueError, match="continuous"):
        Categorical().features(1, None)
    with pytest.raises(ValueError, match="more than one grid"):
        MODELS["two"].latents({}, x)
    with pytest.raises(ValueError, match="positive"):
        Gaussian(scale=0.0)


def test_numbers_of_a_first_stage_are_what_they_say():
    experiment = load_experiment("vqvae_digits", tiny=True)
    model = experiment.resolved_model()
    x = experiment.data.arrays("test", 20)["x"]
    variables = jax.jit(model.init)(jax.random.key(0), {"x": jnp.asarray(x)})
    evaluation = Evaluation(model, variables, experiment.data, lambda n: np.zeros((n, 8, 8, 1)))
    found = ReconstructionError(examples=20, batch_size=7)(evaluation)
    image, codes = (
        jax.jit(model.reconstruct)(variables, jnp.asarray(x)).image,
        np.asarray(jax.jit(model.encode)(variables, jnp.asarray(x))),
    )
    assert found["normalised_error"] == pytest.approx(float(np.mean((image - x) ** 2) / np.var(x)), rel=1e-4)
    p = np.bincount(codes.reshape(-1), minlength=8) / codes.size
    assert found["perplexity"] == pytest.approx(np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))), rel=1e-5)
    assert found["usage"] == np.mean(p > 0)
    assert found["bits_per_dim_of_equal_codes"] == pytest.approx(16 * 3 / 64)


@pytest.mark.thorough
def test_the_sampler_shows_what_became_of_given_images():
    model = MODELS["vit"]
    variables, x = case(model)
    keys = jax.random.split(jax.random.key(0), 4)
    found = Reconstruct()(model, variables, keys, {"image": x}, SHAPE, trajectory=True)
    near(found.x, model.reconstruct(variables, x).image)
    np.testing.assert_array_equal(found.trajectory[0], x)
    with pytest.raises(ValueError, match="no image"):
        Reconstruct()(model, variables, keys, None, SHAPE)
