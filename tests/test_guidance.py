"""Guidance on class-conditional mixtures whose estimates are known in closed form, and sample.py's flags for it."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.digits import Digits
from experiments import digits_classifier, digits_ddpm
from losses.classification import NoisyClassification
from models.classifier import ClassifierMLP, NoisyClassifier
from models.denoiser import Denoiser
from models.mlp import MLP
from models.model import NULL_LABEL
from paths.schedules import VE, VP, Cosine, Rectified
from samplers.autoguidance import Autoguidance
from samplers.catalogue import command_name, solvers
from samplers.classifier_guidance import ClassifierGuidance, score_to_data
from samplers.diffusion import Diffusion
from samplers.guidance import ClassifierFree
from samplers.sampler import sample_keys
from samplers.targets import PLANE, Mixture
from samplers.thresholding import DynamicThreshold
from samplers.transforms import Clip, Network, Transform
from tests.scripts import here
from training.config import decode, encode, options
from training.experiment import Checkpoints, Experiment
from training.loop import train

KEYS = sample_keys(jax.random.key(3), jnp.arange(12))
LABELS = jnp.arange(12, dtype=jnp.int32) % 3
X = jax.random.normal(jax.random.key(0), (12, 2))
T = jnp.linspace(0.1, 0.9, 12)
COMPONENTS = [Mixture(np.ones(1), PLANE.means[k : k + 1], PLANE.stds[k : k + 1]) for k in range(3)]


def of_class(path, x, t, label):
    """E[x₀ | xₜ, class]; the mixture's for "no class"."""
    every = jnp.stack([*(c.denoise(path)(x, t) for c in COMPONENTS), PLANE.denoise(path)(x, t)])
    return jnp.take_along_axis(every, jnp.where(label < 0, 3, label)[None, :, None], axis=0)[0]


@dataclass(frozen=True, kw_only=True)
class Classes(Denoiser):
    """PLANE's components as classes, exactly."""

    classes: int = 3
    offset: float = 0.0

    def init(self, key, batch):
        return {"params": {}, "state": {}}

    def denoise(self, variables, x, t, condition=None):
        label = jnp.full(x.shape[:1], NULL_LABEL)
        if self.classes and condition:
            label = condition["label"]
        return of_class(self.path, x, t, label) + self.offset

    @property
    def num_classes(self):
        return self.classes


@dataclass(frozen=True, kw_only=True)
class Posterior(NoisyClassifier):
    """log p(component | xₜ), exactly."""

    @property
    def num_classes(self):
        return 3

    def log_prob(self, variables, x, t, label):
        terms = [np.log(w) + c.log_prob(self.path, x, t) for w, c in zip(PLANE.weights, COMPONENTS, strict=True)]
        chosen = jnp.take_along_axis(jnp.stack(terms), label[None], axis=0)[0]
        return chosen - PLANE.log_prob(self.path, x, t)


def classes(path=None, **settings):
    return Classes(net=MLP(), path=path or VP(), predicts="x0", **settings)


def network(model, condition=None, **variables):
    return Network(model=model, variables={"params": {}, "state": {}, **variables}, condition=condition)


def draw(model, *transforms, solver="ddim", condition=None, steps=8, **variables):
    sampler = Diffusion(solver=solvers()[solver](), steps=steps, transforms=transforms)
    given = {"params": {}, "state": {}, **variables}
    condition = {"label": LABELS} if condition is None else condition
    return jax.jit(lambda keys, c: sampler(model, given, keys, c, (2,)))(KEYS, condition)


def test_scale_1_is_no_guidance_bit_for_bit():
    model, weak = classes(), classes(offset=0.3)
    asked = network(model, {"label": LABELS}, weak={"params": {}, "state": {}})
    for transform in (ClassifierFree(scale=1.0), Autoguidance(scale=1.0, weak=weak)):
        assert transform(asked, asked) is asked
        assert transform.calls(3) == 3
        plain, guided = draw(model).x, draw(model, transform, weak={"params": {}, "state": {}}).x
        np.testing.assert_array_equal(guided, plain)
    assert float(jnp.abs(draw(model, ClassifierFree(scale=2.0)).x - draw(model).x).max()) > 0.05


@pytest.mark.parametrize("t", [jnp.asarray(0.4), T], ids=["one time", "a time each"])
def test_classifier_free_is_its_formula_of_two_calls(t):
    """The doubled batch against two separate ones; times outside the interval are not guided."""
    model = classes()
    both = {"label": LABELS, "known": X[:, :1]}
    asked = network(model, both)
    ours = ClassifierFree(scale=3.0, interval=(0.3, 0.7))(asked, asked)(X, t)
    times = jnp.broadcast_to(t, (12,))
    with_class = of_class(VP(), X, times, LABELS)
    without = PLANE.denoise(VP())(X, times)
    inside = ((times >= 0.3) & (times <= 0.7))[:, None]
    wanted = np.where(inside, 3.0 * with_class - 2.0 * without, with_class)
    np.testing.assert_allclose(ours, wanted, atol=2e-6)
    assert float(jnp.abs(with_class - without).max()) > 0.1


def test_rescaling_restores_the_deviation():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 4, 3, 3, 1)), jnp.float32)  # [class or none, sample, …]

    class Says(Classes):
        def denoise(self, variables, x, t, condition=None):
            given = condition["label"] >= 0
            return jnp.where(given[:, None, None, None], jnp.repeat(images[0], 2, 0), jnp.repeat(images[1], 2, 0))

    asked = network(Says(net=MLP(), path=VP(), predicts="x0"), {"label": jnp.zeros(4, jnp.int32)})
    guided = 4.0 * images[0] - 3.0 * images[1]
    std = lambda x: np.std(np.asarray(x), axis=(1, 2, 3))  # noqa: E731
    for share in (0.0, 0.7, 1.0):
        ours = ClassifierFree(scale=4.0, rescale=share)(asked, asked)(images[0], jnp.asarray(0.5))
        wanted = share * std(images[0]) + (1.0 - share) * std(guided)
        np.testing.assert_allclose(std(ours), wanted, rtol=1e-5)


@pytest.mark.parametrize("path", [VP(), VE(), Cosine(), Rectified()], ids=["vp", "ve", "cosine", "rectified"])
def test_an_exact_classifier_makes_the_unconditional_estimate_the_class_s_own(path):
    with jax.enable_x64(True):
        x, t = jnp.asarray(X, jnp.float64), jnp.asarray(np.linspace(0.05, 0.95, 12))
        asked = network(classes(path, classes=0), {"label": LABELS}, classifier={})
        guided = lambda scale: ClassifierGuidance(scale=scale, classifier=Posterior(path=path))(asked, asked)  # noqa: E731
        evaluate = jax.jit(
            lambda x, t: (asked(x, t), of_class(path, x, t, LABELS), guided(1.0)(x, t), guided(0.5)(x, t))
        )
        plain, wanted, whole, half = evaluate(x, t)
        np.testing.assert_allclose(whole, wanted, atol=1e-8)
        np.testing.assert_allclose(half, 0.5 * (plain + wanted), atol=1e-8)
        assert float(jnp.abs(plain - wanted).max()) > 0.1


@pytest.mark.parametrize("path", [Cosine(), Rectified()], ids=["cosine", "rectified"])
def test_classifier_guidance_is_finite_where_alpha_is_zero_and_draws_the_class(path):
    assert float(score_to_data(path, jnp.asarray(1.0))) == 0.0
    guide = ClassifierGuidance(scale=1.0, classifier=Posterior(path=path))
    drawn = draw(classes(path, classes=0), guide, solver="heun", classifier={}, steps=40)
    nearest = np.argmin(np.sum((np.asarray(drawn.x)[:, None] - PLANE.means) ** 2 / PLANE.stds**2, -1), axis=1)
    assert np.isfinite(drawn.x).all()
    assert np.sum(nearest == LABELS) >= 11
    assert Diffusion(steps=7, transforms=(guide,)).network_calls() == 7


def test_autoguidance_is_its_formula():
    model, weak = classes(), classes(offset=0.25)
    asked = network(model, {"label": LABELS}, weak={"params": {}, "state": {}})
    ours = Autoguidance(scale=3.0, weak=weak, interval=(0.0, 0.5))(asked, asked)(X, T)
    strong, less = asked(X, T), of_class(VP(), X, T, LABELS) + 0.25
    wanted = np.where((T <= 0.5)[:, None], less + 3.0 * (strong - less), strong)
    np.testing.assert_allclose(ours, wanted, atol=2e-6)
    blind = Autoguidance(scale=3.0, weak=classes(classes=0))(asked, asked)(X, T)  # a weak model without classes
    none = PLANE.denoise(VP())(X, T)
    np.testing.assert_allclose(blind, none + 3.0 * (strong - none), atol=2e-6)
    eps = replace(weak, path=Rectified(), predicts="eps")  # says nothing at t = 1
    asked = network(classes(Rectified()), {"label": LABELS}, weak={"params": {}, "state": {}})
    ones = jnp.ones(12)
    np.testing.assert_array_equal(Autoguidance(scale=3.0, weak=eps)(asked, asked)(X, ones), asked(X, ones))


@pytest.mark.thorough
def test_network_calls_are_those_stated():
    calls = []

    @dataclass(frozen=True, kw_only=True)
    class Counted(Classes):
        def denoise(self, variables, x, t, condition=None):
            jax.debug.callback(lambda n: calls.append(n), x.shape[0])
            return super().denoise(variables, x, t, condition)

    model, weak = Counted(net=MLP(), path=VP(), predicts="x0"), Counted(net=MLP(), path=VP(), predicts="x0")
    first, second = ClassifierFree(scale=2.0, rescale=0.5), Autoguidance(scale=2.0, weak=weak)
    for transforms in ((first,), (second,), (first, second), (first, DynamicThreshold())):
        calls.clear()
        jax.block_until_ready(draw(model, *transforms, solver="heun", weak={"params": {}, "state": {}}, steps=4).x)
        jax.effects_barrier()
        sampler = Diffusion(solver=solvers()["heun"](), steps=4, transforms=transforms)
        assert sum(calls) / len(KEYS) == sampler.network_calls()


@pytest.mark.thorough
def test_guidance_moves_the_samples_of_an_adaptive_solver_and_counts_its_calls():
    plain, guided = (draw(classes(), *transforms, solver="tsit5") for transforms in ((), (ClassifierFree(scale=1.5),)))
    assert bool(jnp.all(jnp.isfinite(guided.x)))
    assert bool(jnp.all(guided.nfe % 2 == 0))
    assert float(jnp.abs(guided.x - plain.x).max()) > 0.05


def test_a_guided_sample_does_not_depend_on_the_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sampler = Diffusion(steps=6, transforms=(ClassifierFree(scale=2.0, rescale=0.3),))
    run = lambda keys, c: sampler(classes(), {"params": {}, "state": {}}, keys, c, (2,)).x  # noqa: E731
    spread = jax.jit(run, in_shardings=split, out_shardings=split).lower(KEYS, {"label": LABELS}).compile()
    np.testing.assert_allclose(spread(*jax.device_put((KEYS, {"label": LABELS}), split)), run(KEYS, {"label": LABELS}),
                               atol=1e-5)  # fmt: skip
    assert "all-gather" not in spread.as_text()


def test_dynamic_threshold_on_numbers():
    x0 = jnp.asarray([[0.5, -0.2, 0.1, 0.9], [4.0, -2.0, 1.0, 0.0]])
    threshold = DynamicThreshold(percentile=2 / 3)  # of four sorted magnitudes, the third
    ours = threshold(lambda x, t: x, network(classes()))(x0, jnp.asarray(0.5))
    np.testing.assert_allclose(ours, [[0.5, -0.2, 0.1, 0.9], [1.0, -1.0, 0.5, 0.0]], rtol=1e-6)
    whole = DynamicThreshold(percentile=1.0, bound=2.0)(lambda x, t: x, network(classes()))(x0, jnp.asarray(0.5))
    np.testing.assert_allclose(whole[1], [2.0, -1.0, 0.5, 0.0], rtol=1e-6)


def test_settings_and_orders_that_cannot_be_are_refused():
    free, asked = ClassifierFree(scale=2.0), network(classes(), {"label": LABELS})
    clipped = Clip()(asked, asked)
    with pytest.raises(ValueError, match="must be the first of the transforms"):
        free(clipped, asked)
    with pytest.raises(ValueError, match="must be the first"):
        draw(classes(), Clip(), free)
    with pytest.raises(ValueError, match="has no null class"):
        draw(classes(classes=0), free)
    with pytest.raises(ValueError, match=r"needs condition\['label'\]"):
        draw(classes(), free, condition={})
    with pytest.raises(ValueError, match="two rising times"):
        ClassifierFree(scale=2.0, interval=(0.6, 0.3))
    with pytest.raises(ValueError, match="the weak model's path"):
        draw(classes(), Autoguidance(scale=2.0, weak=classes(Cosine())))
    with pytest.raises(ValueError, match="weak model's variables"):
        draw(classes(), Autoguidance(scale=2.0, weak=classes()))
    with pytest.raises(ValueError, match="the classifier's path"):
        draw(classes(), ClassifierGuidance(scale=2.0, classifier=Posterior(path=Cosine())))
    with pytest.raises(ValueError, match=r"variables\['classifier'\]"):
        draw(classes(), ClassifierGuidance(scale=2.0, classifier=Posterior(path=VP())))
    with pytest.raises(ValueError, match=r"percentile=1\.5"):
        DynamicThreshold(percentile=1.5)


def test_names_and_configurations():
    assert command_name(ClassifierFree) == "classifier_free"
    names = {"autoguidance", "classifier_free", "classifier_guidance", "clip", "dynamic_threshold"}
    assert names | {"pigdm", "ddnm"} <= set(options(Transform))
    denoiser = Denoiser(net=MLP(num_classes=10), path=VP())
    for transform in (
        ClassifierFree(scale=2.0, interval=(0.1, 0.6)),
        Autoguidance(scale=2.0, weak=denoiser),
        ClassifierGuidance(scale=2.0, classifier=NoisyClassifier(path=VP())),
    ):
        assert decode(encode(transform)) == transform


def test_the_classifier_learns_the_digits_and_its_parts_agree():
    model = NoisyClassifier(net=ClassifierMLP(width=64, depth=1), path=Rectified())
    data = Digits().arrays("train", 256)
    batch = {"x": jnp.asarray(data["x"]), "label": jnp.asarray(data["label"], jnp.int32)}
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    loss = NoisyClassification()

    def mean(params, key):
        result = loss(model, {"params": params, "state": {}}, key, batch, jnp.asarray(0))
        return jnp.mean(result.value), jnp.mean(result.metrics["accuracy"])

    @jax.jit
    def update(params, moment, gradient):
        moment = jax.tree.map(lambda m, g: 0.9 * m + g, moment, gradient)
        return jax.tree.map(lambda p, m: p - 0.02 * m, params, moment), moment

    step = jax.jit(jax.value_and_grad(mean, has_aux=True))
    params, moment = variables["params"], jax.tree.map(jnp.zeros_like, variables["params"])
    first = float(step(params, jax.random.key(9))[0][0])
    for i in range(60):
        (_, accuracy), gradient = step(params, jax.random.key(i))
        params, moment = update(params, moment, gradient)
    assert first == pytest.approx(np.log(10.0), rel=1e-5)  # the last layer starts at zero
    assert float(step(params, jax.random.key(9))[0][0]) < 0.75 * first
    assert float(accuracy) > 0.4
    trained, t = {"params": params, "state": {}}, jnp.full((256,), 0.2)
    log_probs = jax.nn.log_softmax(jax.jit(model.logits)(trained, batch["x"], t))
    ours = jax.jit(model.log_prob)
    np.testing.assert_allclose(
        ours(trained, batch["x"], t, batch["label"]), log_probs[jnp.arange(256), batch["label"]], atol=1e-5
    )
    np.testing.assert_array_equal(ours(trained, batch["x"], t, jnp.full((256,), NULL_LABEL)), 0.0)


def trained(folder: Path, experiment: Experiment, **settings) -> Path:
    """A run that ends where it begins, without pictures and metrics: its network says zero."""
    short = {"steps": 0, "metrics": (), "sample_every": 0, "log_every": 2, "checkpoints": Checkpoints(every=2)}
    train(replace(experiment, **{**short, **settings}), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("guided")
    tiny = digits_ddpm.tiny
    labelled = replace(tiny, model=replace(tiny.model, net=MLP(width=32, depth=2, num_classes=10)))
    classifier = NoisyClassifier(net=ClassifierMLP(width=32, depth=1), path=tiny.model.path)
    return {
        "free": trained(folder / "free", labelled, loss=replace(tiny.loss, label_dropout=0.1)),
        "labelled": trained(folder / "labelled", labelled, steps=2),
        "plain": trained(folder / "plain", tiny),
        "classifier": trained(folder / "classifier", digits_classifier.tiny, model=classifier),
    }


@pytest.mark.thorough
def test_sample_guides(runs, tmp_path):
    x = {}
    for name, flags, calls in (
        ("plain", (), 5),
        ("one", ("--guidance", "1"), 5),
        ("three", ("--guidance", "3", "--guidance-interval", "0.1", "0.9", "--threshold"), 10),
        ("weak", ("--weak", str(runs["labelled"]), "--weak-scale", "3"), 10),
    ):
        code, out, err = here("sample.py", runs["free"], "--n", "4", "--label", "3", *flags, "--out", tmp_path)
        assert code == 0, err
        assert f"{calls} network calls" in out
        x[name] = np.load(tmp_path / "samples.npz")["x"]
    np.testing.assert_array_equal(x["one"], x["plain"])
    assert np.abs(x["three"]).max() <= 1.0
    assert np.abs(x["weak"] - x["plain"]).max() > 1e-4
    code, out, err = here(
        *("sample.py", str(runs["plain"]), "--n", "4", "--label", "7", "--classifier", str(runs["classifier"])),
        *("--classifier-scale", "50", "--out", str(tmp_path)),
    )
    assert code == 0, err
    assert "5 network calls" in out
    assert (np.load(tmp_path / "samples.npz")["label"] == 7).all()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("run", "flags", "message"),
    [
        ("plain", ("--guidance", "3"), "is not conditioned on classes"),
        ("labelled", ("--guidance", "3"), "no null class to guide away from; --loss.label-dropout 0.1 trains one"),
        ("free", ("--guidance", "3", "--label", "10"), "--label 10: allowed is 0 to 9"),
        ("free", ("--guidance", "3", "--guidance-rescale", "2"), "guidance rescale=2 is not in [0, 1]"),
        ("free", ("--guidance-interval", "0.1", "0.5"), "are settings of --guidance SCALE"),
        (
            "free",
            ("--weak", "{labelled}", "--guidance-rescale", "0.5"),
            "--guidance-rescale is a setting of --guidance",
        ),
        ("free", ("--image-noise", "0.5"), "--image-noise is a setting of --method pigdm"),
        ("free", ("--weak-scale", "3"), "--weak-scale is a setting of --weak RUN"),
        ("free", ("--weak", "nowhere"), "nowhere holds no run"),
        ("free", ("--classifier", "{plain}"), "is a run of Denoiser, where one of NoisyClassifier is needed"),
        ("classifier", ("--guidance", "3"), "is drawn by NoSampler: guidance"),
    ],
)
def test_samples_mistakes(runs, run, flags, message):
    flags = [flag.format(**runs) for flag in flags]
    code, _, err = here("sample.py", runs[run], *flags)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
