"""Linear operators against dense matrices, samples that agree with measurements, and sample.py's given images."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from experiments import digits_ddpm, digits_flow
from models.denoiser import Denoiser
from models.mlp import MLP
from models.model import NULL_LABEL
from paths.couplings import MinibatchOT
from paths.schedules import VP, Cosine, Rectified
from samplers.catalogue import command_name, solvers
from samplers.ddnm import DDNM
from samplers.diffusion import Diffusion
from samplers.guidance import ClassifierFree
from samplers.operators import Blur, Downsample, Mask
from samplers.pigdm import PiGDM
from samplers.sampler import sample_keys
from samplers.transforms import Clip, Network
from tests.conftest import tiers
from tests.scripts import here
from tests.test_guidance import trained
from training.config import decode, encode
from training.draw import Drawer
from training.edit import Edit, edited
from training.errors import UserError
from training.mesh import Mesh

N, H, W = 3, 6, 4
RNG = np.random.default_rng(0)
MASK = (RNG.random((N, H, W, 1)) < 0.4).astype(np.float32)
OPERATORS = {"mask": Mask(), "blur": Blur(std=0.8), "downsample": Downsample(factor=2)}
KEYS = sample_keys(jax.random.key(3), jnp.arange(N))


class Standard(Denoiser):
    """The exact denoiser of data N(0, I): α·x/(α² + σ²)."""

    def init(self, key, batch):
        return {"params": {}, "state": {}}

    def denoise(self, variables, x, t, condition=None):
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return (alpha / (alpha**2 + sigma**2))[:, None, None, None] * x


def standard(path=None):
    return Standard(net=MLP(), path=path or VP(), predicts="x0")


def network(known, path=None):
    condition = {"known": known, "mask": jnp.asarray(MASK, known.dtype)}
    return Network(model=standard(path), variables={}, condition=condition)


def dense(linear, sample: int, m: tuple[int, ...]):
    """A of one channel of one sample, column by column."""
    columns = []
    for i in range(H * W):
        x = jnp.zeros((N, H * W)).at[:, i].set(1.0).reshape(N, H, W, 1)
        columns.append(np.asarray(linear.apply(x))[sample].reshape(-1))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_their_matrices(name):
    """Adjoint, (a·AAᵀ + b·I)⁻¹ with coefficients of each sample, and pseudo-inverse."""
    with jax.enable_x64(True):
        linear = OPERATORS[name].bind({"mask": jnp.asarray(MASK, jnp.float64)})
        x = jnp.asarray(RNG.normal(size=(N, H, W, 2)))
        y = jnp.asarray(RNG.normal(size=linear.apply(x).shape))
        if name == "mask":
            y = y * MASK
        np.testing.assert_allclose(jnp.sum(linear.apply(x) * y), jnp.sum(x * linear.adjoint(y)), rtol=1e-12)
        a, b = jnp.asarray([0.5, 2.0, 1.0]), jnp.asarray([0.1, 1e-3, 3.0])
        solved, plain = linear.gram_solve(y, a, b), linear.gram_solve(y, 0.7, 0.2)
        inverse = linear.pseudo_inverse(y)
        for i in range(N):
            matrix = dense(linear, i, y.shape[1:3])
            flat = lambda v, i=i: np.asarray(v)[i].reshape(-1, 2)  # noqa: E731
            np.testing.assert_allclose(flat(linear.apply(x)), matrix @ flat(x), atol=1e-12)
            identity = np.eye(len(matrix))
            for found, (p, q) in ((solved, (float(a[i]), float(b[i]))), (plain, (0.7, 0.2))):
                wanted = np.linalg.solve(p * matrix @ matrix.T + q * identity, flat(y))
                np.testing.assert_allclose(flat(found), wanted, atol=1e-8)
            cutoff = 0.05 if name == "blur" else 1e-6
            np.testing.assert_allclose(flat(inverse), np.linalg.pinv(matrix, rcond=cutoff) @ flat(y), atol=1e-9)


def test_blur_and_downsample_are_the_usual_ones():
    x = RNG.normal(size=(1, 9, 7, 1))
    for std in (0.5, 1.3, 4.0):  # the last reaches beyond the mirrored image
        ours = Blur(std=std).apply(jnp.asarray(x, jnp.float32))[0, :, :, 0]
        theirs = ndimage.gaussian_filter(x[0, :, :, 0], std, mode="reflect", truncate=4.0)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    means = x[:, :8, :6].reshape(1, 4, 2, 3, 2, 1).mean((2, 4))
    np.testing.assert_allclose(Downsample(factor=2).apply(jnp.asarray(x[:, :8, :6], jnp.float32)), means, atol=1e-6)


def test_a_noiseless_blur_keeps_float32_finite():
    y = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32)
    blur = Blur(std=3.0)
    assert float(jnp.abs(blur.pseudo_inverse(y)).max()) < 20 * float(jnp.abs(y).sum())
    assert bool(jnp.all(jnp.isfinite(blur.gram_solve(y, 0.5, 0.0))))
    assert bool(jnp.all(blur.gram_solve(y, 0.0, 0.0) == 0.0))


def measured(name, dtype=np.float32):
    x = RNG.normal(size=(N, H, W, 2)).astype(dtype)
    linear = OPERATORS[name].bind({"mask": jnp.asarray(MASK, dtype)})
    return linear, linear.apply(jnp.asarray(x))


@pytest.mark.parametrize("solver", tiers(["ddim", "heun", "ddpm", "dpmpp_2m", "tsit5"], first=("ddim", "tsit5")))
def test_replacement_keeps_known_pixels_bit_for_bit(solver):
    _, known = measured("mask")
    condition = {"known": known, "mask": jnp.asarray(MASK)}
    variables = {"params": {}, "state": {}}
    last = DDNM(operator=Mask())
    sampler = Diffusion(solver=solvers()[solver](), steps=5, transforms=(Clip(low=-0.2, high=0.2), last))
    run = jax.jit(lambda keys, c: sampler(standard(), variables, keys, c, (H, W, 2)).x)
    x, kept = np.asarray(run(KEYS, condition)), np.broadcast_to(MASK > 0.5, (N, H, W, 2))
    np.testing.assert_array_equal(x[kept], np.asarray(known)[kept])
    assert np.abs(x[~kept]).max() <= 0.2 + 1e-6
    if solver == "ddim":  # the other order moves them: what bounds x̂₀ comes before
        first = Diffusion(solver=solvers()[solver](), steps=5, transforms=(last, Clip(low=-0.2, high=0.2)))
        moved = np.asarray(first(standard(), variables, KEYS, condition, (H, W, 2)).x)
        assert np.abs(moved[kept] - np.asarray(known)[kept]).max() > 0.1


@pytest.mark.parametrize("name", OPERATORS)
def test_replacement_agrees_with_what_was_measured(name):
    linear, known = measured(name)
    asked = network(known)
    x = jnp.asarray(RNG.normal(size=(N, H, W, 2)), jnp.float32)
    transform = DDNM(operator=OPERATORS[name])
    replaced = transform(asked, asked)(x, jnp.asarray(0.3))
    # Of the blur, what its cut-off leaves: its singular values below 0.05.
    np.testing.assert_allclose(linear.apply(replaced), known, atol=0.3 if name == "blur" else 1e-5)
    np.testing.assert_allclose(linear.consistent(replaced, known), replaced, atol=1e-4)
    change = replaced - asked(x, jnp.asarray(0.3))
    np.testing.assert_allclose(linear.pseudo_inverse(linear.apply(change)), change, atol=1e-4)  # no more than needed
    assert decode(encode(transform)) == transform


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("name", OPERATORS)
def test_reconstruction_is_the_posterior_mean_of_standard_normal_data(name, noise):
    """E[x₀ | xₜ, y] by the joint Gaussian's dense matrices; a time each."""
    with jax.enable_x64(True):
        linear, known = measured(name, np.float64)
        asked, t = network(known), jnp.asarray([0.1, 0.4, 0.8])
        x = jnp.asarray(RNG.normal(size=(N, H, W, 2)))
        ours = PiGDM(operator=OPERATORS[name], noise=noise)(asked, asked)(x, t)
        alpha, sigma = np.asarray(VP().alpha(t)), np.asarray(VP().sigma(t))
        for i in range(N):
            matrix = dense(linear, i, known.shape[1:3])
            if name == "mask":  # only what was measured
                rows = MASK[i].reshape(-1) > 0.5
                matrix, y = matrix[rows], np.asarray(known[i]).reshape(-1, 2)[rows]
            else:
                y = np.asarray(known[i]).reshape(-1, 2)
            prior = alpha[i] ** 2 / sigma[i] ** 2 * np.eye(H * W) + np.eye(H * W)  # precision of x₀ | xₜ
            spread = np.linalg.inv(prior)
            mean = alpha[i] / sigma[i] ** 2 * spread @ np.asarray(x[i]).reshape(-1, 2)
            gain = spread @ matrix.T @ np.linalg.inv(matrix @ spread @ matrix.T + noise**2 * np.eye(len(matrix)))
            wanted = mean + gain @ (y - matrix @ mean)
            np.testing.assert_allclose(np.asarray(ours[i]).reshape(-1, 2), wanted, atol=1e-6)


@pytest.mark.parametrize("path", tiers({"cosine": Cosine(), "rectified": Rectified()}, first=("cosine",)))
def test_reconstruction_from_pure_noise_ends_at_the_measurement(path):
    """Finite where α = 0, with a fixed-step and an adaptive solver."""
    linear, known = measured("downsample")
    transforms = (PiGDM(operator=Downsample(factor=2)),)
    for solver in ("ddim", "tsit5"):
        sampler = Diffusion(solver=solvers()[solver](), steps=20, transforms=transforms)
        draw = jax.jit(lambda keys, c, s=sampler: s(standard(path), {"params": {}, "state": {}}, keys, c, (H, W, 2)).x)
        x = draw(KEYS, {"known": known})
        np.testing.assert_allclose(linear.apply(x), known, atol=2e-3)
    assert sampler.transforms[0].calls(2) == 2


def test_a_drawer_splits_the_given_arrays_with_the_batch():
    """Eleven samples in batches of four over two devices, each with its own image."""
    known = RNG.normal(size=(11, H, W, 1)).astype(np.float32)
    mask = np.zeros((11, H, W, 1), np.float32)
    mask[np.arange(11), np.arange(11) % H] = 1.0
    sampler = Diffusion(steps=2, transforms=(DDNM(operator=Mask()),))
    draw = Drawer(standard(), sampler, (H, W, 1), Mesh(data=2).build(), batch_size=4)
    x = draw({"params": {}, "state": {}}, jax.random.key(0), 11, {"known": known, "mask": mask}).x
    np.testing.assert_array_equal(x[mask > 0.5], known[mask > 0.5])
    assert np.abs(x[mask < 0.5] - known[mask < 0.5]).min() > 0.0


def test_what_is_missing_or_of_another_shape_is_said():
    _, known = measured("mask")
    model, x, t = standard(), jnp.zeros((N, H, W, 2)), jnp.asarray(0.5)
    empty = Network(model=model, variables={}, condition=None)
    for transform in (DDNM(operator=Mask()), PiGDM(operator=Mask())):
        with pytest.raises(ValueError, match=r"needs condition\['known'\]"):
            transform(empty, empty)
        with pytest.raises(ValueError, match=r"needs condition\['mask'\]"):
            transform(empty, Network(model=model, variables={}, condition={"known": known}))
    asked = network(known)
    with pytest.raises(ValueError, match=r"shape \(3, 6, 4, 2\), but the operator measures \(3, 3, 2, 2\)"):
        DDNM(operator=Downsample(factor=2))(asked, asked)(x, t)
    with pytest.raises(ValueError, match="blocks of 4 do not divide an image's side of 6 pixels"):
        PiGDM(operator=Downsample(factor=4))(asked, asked)(x, t)
    with pytest.raises(ValueError, match=r"blur acts on images"):
        Blur(std=1.0).apply(jnp.zeros((3, 2)))
    for wrong in (
        lambda: Blur(std=0.0),
        lambda: Downsample(factor=0),
        lambda: PiGDM(operator=Mask(), noise=-1.0),
    ):
        with pytest.raises(ValueError, match=r"must be|cannot be negative"):
            wrong()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    trained(folder / "run", digits_ddpm.tiny)
    for name, shape in (("image", (8, 8)), ("half", (4, 4)), ("other", (6, 4))):
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(mask).convert("1").save(folder / "mask.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.mark.thorough
def test_flags_are_put_in_the_order_that_is_meant(run):
    """Guidance, reconstruction, what bounds, replacement; a threshold takes the place of clipping."""
    tiny = digits_ddpm.tiny
    experiment = replace(
        tiny,
        model=replace(tiny.model, net=MLP(width=32, depth=2, num_classes=10)),
        loss=replace(tiny.loss, label_dropout=0.1),
        sampler=replace(tiny.sampler, transforms=(Clip(),)),
    )

    def order(**flags):
        flags = {"guidance": 2.0, "inpaint": (run / "mask.png", run / "image.png"), **flags}
        return [command_name(type(t)) for t in made(Edit(**flags)).sampler.transforms]

    made = lambda edit: edited(edit, experiment.sampler, run / "run", experiment)  # noqa: E731
    assert order() == ["classifier_free", "clip", "ddnm"]
    assert order(threshold=True) == ["classifier_free", "dynamic_threshold", "ddnm"]
    assert order(method="pigdm") == ["classifier_free", "pigdm", "clip"]
    again = edited(Edit(guidance=3.0), made(Edit(guidance=2.0)).sampler, run / "run", experiment)
    assert again.sampler.transforms == (ClassifierFree(scale=3.0), Clip())  # in place of the run's own
    assert made(Edit()).sampler is experiment.sampler


def test_an_image_is_of_no_class_until_one_is_named(run):
    tiny = digits_flow.tiny
    files = (run / "mask.png", run / "image.png")
    edit = edited(Edit(inpaint=files), tiny.sampler, run / "run", tiny)
    assert (edit.condition(tiny.model, tiny.data, 3, None)["label"] == NULL_LABEL).all()
    assert (edit.condition(tiny.model, tiny.data, 3, 7)["label"] == 7).all()
    without = replace(tiny, loss=replace(tiny.loss, label_dropout=0.0))
    edit = edited(Edit(inpaint=files), tiny.sampler, run / "run", without)
    np.testing.assert_array_equal(edit.condition(tiny.model, tiny.data, 3, None)["label"], [0, 1, 2])


def test_a_flow_of_coupled_noise_is_not_guided_by_gradients(run):
    tiny = digits_flow.tiny
    coupled = replace(tiny, loss=replace(tiny.loss, coupling=MinibatchOT()))
    files = (run / "mask.png", run / "image.png")
    with pytest.raises(UserError, match="was trained on noise coupled to data"):
        edited(Edit(inpaint=files, method="pigdm"), tiny.sampler, run / "run", coupled)
    assert edited(Edit(inpaint=files), tiny.sampler, run / "run", coupled).given


def test_sample_edits(run, tmp_path):
    def sample(*flags):
        code, out, err = here("sample.py", run / "run", "--n", "3", *flags, "--out", tmp_path)
        assert code == 0, err
        assert "samples.png" in out
        return np.load(tmp_path / "samples.npz")

    image = np.asarray(Image.open(run / "image.png")).astype(np.float32) * np.float32(2 / 255) - np.float32(1)
    drawn = sample("--inpaint", run / "mask.png", run / "image.png")
    np.testing.assert_array_equal(drawn["x"][:, :, :5, 0], np.broadcast_to(image[:, :5], (3, 8, 5)))
    assert not np.allclose(drawn["x"][:, :, 5:, 0], image[:, 5:], atol=0.05)
    np.testing.assert_array_equal(drawn["mask"][0, 0, :, 0], [1, 1, 1, 1, 1, 0, 0, 0])
    half = np.asarray(Image.open(run / "half.png")).astype(np.float32) * np.float32(2 / 255) - np.float32(1)
    drawn = sample("--super-resolve", 2, run / "half.png", "--method", "ddnm")
    np.testing.assert_allclose(
        drawn["x"].reshape(3, 4, 2, 4, 2).mean((2, 4)), np.broadcast_to(half, (3, 4, 4)), atol=1e-5
    )
    assert np.isfinite(sample("--deblur", 0.7, run / "image.png")["x"]).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--inpaint", "{}/other.png", "{}/image.png"), "other.png is 4x6 (width x height), but "),
        (("--inpaint", "{}/mask.png", "{}/half.png"), "needs 8x8"),
        (("--super-resolve", "2", "{}/image.png"), "needs 4x4: its images' size / 2"),
        (("--super-resolve", "3", "{}/half.png"), "blocks of 3 do not divide an image's side of 8 pixels"),
        (("--deblur", "1", "{}/none.png"), "there is no image"),
        (("--deblur", "1", "{}/text.png"), "is not an image that can be read"),
        (("--deblur", "1", "{}/image.png", "--super-resolve", "2", "{}/half.png"), "one image at a time"),
        (("--method", "ddnm"), "give --inpaint, --deblur or --super-resolve too"),
    ],
)
def test_samples_mistakes(run, flags, message):
    code, _, err = here("sample.py", run / "run", *(flag.format(run) for flag in flags))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
