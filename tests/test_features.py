"""Numbers of generative models against brute force in float64, and the features that they are measured in."""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import linen as nn

from data.dataset import MissingDataError
from data.digits import Digits
from data.image_tokens import ImageTokens
from data.toys import TwoMoons
from experiments.digits_flow import tiny as digits_flow
from losses.identification import Identification
from metrics.features import PIXELS, Learned
from metrics.frechet import FrechetDistance, frechet_distance
from metrics.kid import KID, kernel_distance, over_subsets
from metrics.manifold import Manifold, density_coverage, precision_recall, squared_radii
from metrics.metric import Evaluation
from metrics.neighbours import TwoSampleAccuracy
from models.embedder import Embedder, EmbeddingNet
from tests.test_evaluate import evaluate, numbers_of
from training import config
from training.errors import UserError
from training.experiment import Experiment
from training.features import features_of
from training.loop import train
from training.run import Run


def sets(n=30, m=23, d=5):
    r = np.random.RandomState(0)
    return r.randn(n, d), r.randn(m, d) @ r.randn(d, d) * 0.6 + 0.3


def test_the_kernel_distance_is_the_unbiased_double_sum():
    for d in (1, 6):
        x, y = sets(d=d)
        k = lambda a, b: (a @ b / d + 1) ** 3  # noqa: B023, E731
        pairs = lambda a: [k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]  # noqa: B023, E731
        wanted = np.mean(pairs(x)) + np.mean(pairs(y)) - 2 * np.mean([k(a, b) for a in x for b in y])
        for chunk in (1000, 7):
            assert kernel_distance(x, y, chunk) == pytest.approx(wanted, rel=1e-9)
            assert kernel_distance(y, x, chunk) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="at least 2 examples a side"):
        kernel_distance(x, y[:1])


def test_the_kernel_distance_has_no_bias_in_small_sets():
    """Of one distribution its mean is 0, to four standard errors, where the biased sum's is far from it."""
    values = np.asarray([kernel_distance(*pair) for pair in np.random.RandomState(0).randn(4000, 2, 5, 3)])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    # With the diagonals it would be more by 2·(E k(x, x) − E k(x, y))/n, and E k(x, x) ≥ 2³, E k(x, y) = 2 here.
    assert 8 * error < 2 * (2.0**3 - 2) / 5


def test_subsets_are_drawn_without_replacement_and_by_the_seed_alone():
    x, y = sets()
    of = lambda seed, subsets=6: over_subsets(x, y, subsets=subsets, size=10, seed=seed)  # noqa: E731
    np.testing.assert_array_equal(of(3), of(3))
    np.testing.assert_array_equal(of(3, subsets=2), of(3)[:2])
    assert (of(3) != of(4)).all()
    whole = over_subsets(x[:23], y, subsets=3, size=23, seed=0)
    np.testing.assert_allclose(whole, kernel_distance(x[:23], y), rtol=1e-9)
    with pytest.raises(ValueError, match="size=24 are more than the 23 examples"):
        over_subsets(x, y, subsets=3, size=24, seed=0)


def brute_force(real, samples, k):
    """Precision, recall, density and coverage of balls, one pair after the other."""
    far = lambda a, b: float(np.sqrt(((a - b) ** 2).sum()))  # noqa: E731
    radius = lambda points, i: sorted(far(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]  # noqa: E731
    of_real = [radius(real, i) for i in range(len(real))]
    of_samples = [radius(samples, i) for i in range(len(samples))]
    within = [[far(y, x) <= r for x, r in zip(real, of_real, strict=True)] for y in samples]
    back = [[far(x, y) <= r for y, r in zip(samples, of_samples, strict=True)] for x in real]
    precision, recall = np.mean([any(row) for row in within]), np.mean([any(row) for row in back])
    return precision, recall, np.sum(within) / (k * len(samples)), np.mean(np.any(within, axis=0))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_and_coverage_equal_the_count_of_pairs(k):
    for d in (1, 4):
        x, y = sets(d=d)
        for chunk in (1000, 7):
            found = (*precision_recall(x, y, k, chunk), *density_coverage(x, y, k, chunk))
            assert found == pytest.approx(brute_force(x, y, k), rel=1e-12)


def test_the_four_numbers_on_a_line():
    """k = 1: the real points' balls are [−1, 1], [0, 2], [1, 5], those of the samples [−6, 9], [8, 10], [9, 11]."""
    real, samples = np.asarray([[0.0], [1.0], [3.0]]), np.asarray([[1.5], [9.0], [10.0]])
    np.testing.assert_array_equal(squared_radii(real, 1), [1.0, 1.0, 4.0])
    assert precision_recall(real, samples, 1) == pytest.approx((1 / 3, 1.0))
    assert density_coverage(real, samples, 1) == pytest.approx((2 / 3, 2 / 3))
    with pytest.raises(ValueError, match="more than k examples, got 3"):
        precision_recall(real, samples, 3)


def test_a_copy_of_a_balls_edge_is_in_the_ball():
    """Whatever rounding makes of distances far from the origin."""
    x = np.random.RandomState(0).randn(50, 20) + 100.0
    assert precision_recall(x, x, 3) == (1.0, 1.0)
    # Each point's own ball holds itself and its k nearest.
    assert density_coverage(x, x, 5) == (pytest.approx(6 / 5), 1.0)
    twice = np.repeat(x, 2, axis=0)  # balls of radius 0
    assert precision_recall(twice, x, 1)[0] == 1.0


def test_truncation_raises_precision_and_lowers_recall():
    """Samples of a Gaussian drawn closer and closer to its mean; density and coverage follow."""
    real, drawn = np.random.RandomState(0).randn(2, 400, 8)
    scales = (1.0, 0.7, 0.4)
    precision, recall = np.transpose([precision_recall(real, scale * drawn) for scale in scales])
    assert precision[0] < precision[1] < precision[2]
    assert recall[0] > recall[1] > recall[2]
    density, coverage = np.transpose([density_coverage(real, scale * drawn) for scale in scales])
    assert density[0] == pytest.approx(1.0, abs=0.15)
    assert density[0] < density[1] < density[2]
    assert coverage[0] > coverage[2]


def test_samples_that_are_no_numbers_are_in_no_ball_and_spoil_no_other():
    x, y = sets(n=40, m=30)
    spoiled = np.concatenate([y, [[np.nan] * 5, [np.inf, 0, 0, 0, 0]]])
    precision, recall = precision_recall(x, y)
    assert precision_recall(x, spoiled) == pytest.approx((precision * 30 / 32, recall))
    density, coverage = density_coverage(x, y)
    assert density_coverage(x, spoiled) == pytest.approx((density * 30 / 32, coverage))
    assert precision_recall(x, np.full((9, 5), np.nan)) == (0.0, 0.0)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="2 of the second's 32 examples have features that are not finite"):
            distance(x, spoiled)


def test_sets_in_different_features_are_not_compared():
    wide, narrow = np.ones((20, 2, 3)), np.ones((20, 5))
    for number in (frechet_distance, kernel_distance, precision_recall, density_coverage):
        for first, second, sizes in ((wide, narrow, (6, 5)), (narrow, wide, (5, 6))):
            message = f"the first's examples are vectors of {sizes[0]} numbers and the second's of {sizes[1]}: only"
            with pytest.raises(ValueError, match=message) as caught:
                number(first, second)
            assert "\n" not in str(caught.value)


def first_two(x):
    return 3.0 * x.reshape(len(x), -1)[:, 20:22]


TWO = Learned("two pixels", 2, first_two)


def test_metrics_are_measured_in_the_features_of_their_evaluation():
    data = Digits()
    train_x, test_x = data.arrays("train", 300)["x"], data.arrays("test", 1000)["x"]
    samples = train_x[::-1] + 0.1
    evaluation = Evaluation(digits_flow.model, {}, data, lambda n: samples[:n], TWO)
    x, y = (first_two(side.astype(np.float64)) for side in (samples, test_x))
    numbers = FrechetDistance(samples=300)(evaluation)
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert numbers["frechet_distance"] == pytest.approx(wanted, rel=1e-5)  # float32 features
    assert numbers["frechet_distance_of_train"] == pytest.approx(frechet_distance(train_x, test_x, first_two), rel=1e-9)
    kid = KID(samples=300, subsets=5, size=50)(evaluation)
    assert set(kid) == {"kid", "kid_stderr", "kid_of_train", "kid_of_train_stderr"}
    values = over_subsets(TWO(samples), TWO(test_x), 5, 50, 0)
    assert kid["kid"] == pytest.approx(values.mean())
    assert kid["kid_stderr"] == pytest.approx(values.std(ddof=1) / np.sqrt(5))
    four = Manifold(samples=100)(evaluation)
    real, own = TWO(test_x[:100]), TWO(samples[:100])
    found = (four["precision"], four["recall"]), (four["density"], four["coverage"])
    assert found == (precision_recall(real, own, 3), density_coverage(real, own, 5))
    assert four["recall_of_train"] == precision_recall(real, TWO(train_x[:100]), 3)[1]
    plain = replace(evaluation, features=PIXELS)
    assert Manifold(samples=100)(plain)["precision"] == precision_recall(test_x[:100], samples[:100])[0]
    accuracy = TwoSampleAccuracy(samples=50)
    assert accuracy(evaluation) == accuracy(plain)


def test_what_cannot_be_measured_is_refused_before_anything_is_drawn():
    def never(n):
        raise AssertionError("drawn")

    evaluation = Evaluation(digits_flow.model, {}, Digits(), never, TWO)
    with pytest.raises(ValueError, match="size=500 are more than the 360"):
        KID(samples=500, size=500)(evaluation)
    wide = Learned("many", 400, lambda x: np.ones((len(x), 400)))
    with pytest.raises(ValueError, match="400 features needs at least 401 examples a side; the second has 360"):
        FrechetDistance(samples=500)(replace(evaluation, features=wide))
    FrechetDistance(samples=3).check_features(Digits(), TWO)
    with pytest.raises(ValueError, match=r"2 features \(two pixels\) needs samples=3 or more, got 2"):
        FrechetDistance(samples=2).check_features(Digits(), TWO)
    with pytest.raises(ValueError, match=r"64 features \(raw pixels\) needs samples=65 or more, got 64"):
        FrechetDistance(samples=64).check(Digits())
    for wrong in ({"size": 1}, {"subsets": 1}, {"samples": 99}, {"seed": -1}):
        with pytest.raises(ValueError, match="KID: size and subsets must be at least 2"):
            KID(**{"samples": 200, "size": 100, **wrong})
    for wrong in ({"k": 0}, {"k_density": 0}, {"samples": 5}):
        with pytest.raises(ValueError, match="k and k_density must be at least 1"):
            Manifold(**wrong)


class TinyNet(EmbeddingNet):
    features: int = 8

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(self.features)(jnp.tanh(x.reshape(len(x), -1)))


config.register(sys.modules[__name__])  # a run's folder names it
EMBEDDER = Experiment(
    data=Digits(), model=Embedder(net=TinyNet()), loss=Identification(), steps=2, batch_size=16, log_every=1
)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "embedder"
    train(EMBEDDER, folder)
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "flow"
    model = replace(digits_flow.model, net=digits_flow.model.net.clone(depth=1))
    metrics = (TwoSampleAccuracy(samples=70), FrechetDistance(samples=70))
    train(replace(digits_flow, model=model, remat="none", steps=2, sample_every=0, metrics=metrics), folder)
    return folder


def test_an_embedders_features_are_its_directions_with_a_mean_square_of_one(embedder):
    features = features_of(str(embedder), Digits())
    digest = json.loads((embedder / "summary.json").read_text())["state_digest"]
    assert features.name == f"8 features of {embedder} (digest {digest[:8]})"
    assert features.size((8, 8, 1)) == 8
    x = Digits().arrays("test", 70)["x"]  # more than one batch of 64
    found = features(x)
    np.testing.assert_allclose((found**2).mean(1), 1.0, rtol=1e-5)
    run = Run(embedder)
    model = run.experiment().resolved_model()
    batch = {"x": x, "label": np.zeros(70, np.int32)}
    variables, _ = run.averaged(model, batch, jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))
    h = np.asarray(model.embed(variables, jnp.asarray(x)), np.float64)
    np.testing.assert_allclose(found, np.sqrt(8) * h / np.linalg.norm(h, axis=1, keepdims=True), atol=1e-5)
    assert features_of(str(embedder), ImageTokens(images=Digits())).name == features.name  # of what is shown
    x[3, 0, 0] = np.nan
    np.testing.assert_array_equal(np.isfinite(features(x)).all(1), np.arange(70) != 3)


class FewDigits(Digits):
    def arrays(self, split, limit):
        return super().arrays(split, min(limit, 60))


def test_the_classifiers_features_are_named_and_need_labels():
    features = features_of("classifier", FewDigits())
    assert features.name == "64 features of a 256-64 MLP classifier of the same data"
    assert features(Digits().arrays("test", 5)["x"]).shape == (5, features.size((8, 8, 1)))
    assert features_of("pixels", Digits()) == PIXELS
    with pytest.raises(UserError, match="classifier is fitted on labels, and TwoMoons has none"):
        features_of("classifier", TwoMoons())


@pytest.mark.thorough
def test_a_name_that_is_none_of_images_like_these_is_refused_in_one_line(embedder, generator, tmp_path):
    def refused(name, data=None):
        with pytest.raises(UserError) as caught:
            features_of(name, data or Digits())
        message = str(caught.value)
        assert message.startswith(f"--features {name}")
        assert "\n" not in message
        return message

    assert "pixels, classifier, inception:FILE or the folder" in refused("pixel")
    assert "holds no run" in refused(str(tmp_path))
    assert "a run of a Denoiser; features are those of an Embedder" in refused(str(generator))
    assert "shape [8, 8, 1], and what is measured has the shape [2]" in refused(str(embedder), TwoMoons())
    assert "images [H, W, 1 or 3], and these examples have the shape [2]" in refused("inception:x.pth", TwoMoons())
    with pytest.raises(MissingDataError, match=r"there is no file absent\.pth: it is to be FID's Inception weights"):
        features_of("inception:absent.pth", Digits())
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((embedder / "config.json").read_text())
    assert "stands at step 0 of 2" in refused(str(half))


@pytest.mark.thorough
def test_a_summary_names_the_features_of_its_numbers(embedder, generator):
    of_generator, of_embedder = (json.loads((run / "summary.json").read_text()) for run in (generator, embedder))
    assert of_generator["features"] == "raw pixels"
    assert np.isfinite(of_generator["frechet_distance"])
    assert "features" not in of_embedder  # none of its metrics is measured in any


@pytest.mark.thorough
def test_numbers_in_different_features_stand_beside_one_another(embedder, generator):
    """evaluate.py: the features are printed, stored, and measured again only in place of themselves."""
    frechet, file = (str(generator), "frechet_distance", "--samples", "70"), generator / "evaluation.json"

    def measured(*arguments):
        code, out = evaluate(*arguments)
        assert code == 0, out
        return out

    pixels = measured(*frechet)
    assert "features: raw pixels\n" in pixels
    own = measured(*frechet, "--features", str(embedder))
    name = features_of(str(embedder), Digits()).name
    assert f"features: {name}\n" in own
    assert np.isfinite(numbers_of(own)["frechet_distance"])
    assert numbers_of(own) != pytest.approx(numbers_of(pixels), rel=1e-3)
    again = measured("--features", str(embedder), *frechet)
    assert numbers_of(again) == numbers_of(own)
    rows = json.loads(file.read_text())
    assert [row["features"] for row in rows] == ["raw pixels", name]
    assert rows[0]["numbers"] == pytest.approx(numbers_of(pixels), rel=1e-4)
    # A row of before every name was stored is one of raw pixels, and is measured again in place of itself.
    file.write_text(json.dumps([{key: value for key, value in rows[0].items() if key != "features"}, rows[1]]))
    measured(*frechet)
    assert json.loads(file.read_text()) == [rows[1], rows[0]]
    # A metric that is measured in none has no name beside it, and may not be asked for one.
    two_sample = (str(generator), "two_sample_accuracy", "--samples", "70")
    assert "features" not in measured(*two_sample)
    assert "features" not in json.loads(file.read_text())[-1]
    code, out = evaluate(*two_sample, "--features", str(embedder))
    refused = f"error: --features {embedder}: features are for frechet_distance, kid, manifold, and what is to be "
    assert (code, out) == (2, f"{refused}measured is TwoSampleAccuracy\n")
    # Of a run's own metrics, one is enough; each has its own row.
    measured(str(generator), "--features", str(embedder))
    rows = json.loads(file.read_text())
    assert [row.get("features") for row in rows] == ["raw pixels", None, name]
    # 9 samples are enough for 8 features, and not for 64 pixels.
    few = (*frechet[:2], "--samples", "9")
    assert np.isfinite(numbers_of(measured(*few, "--features", str(embedder)))["frechet_distance"])
    code, out = evaluate(*few)
    assert (code, "64 features (raw pixels) needs samples=65 or more, got 9" in out) == (2, True)
    code, out = evaluate(*frechet, "--features", str(generator))
    assert (code, "features are those of an Embedder" in out) == (2, True)
