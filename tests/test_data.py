"""Data: batches as pure functions of (seed, position), pixel scaling, exact toy densities, clear mistakes."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data.arrays import ArraySource, flipped
from data.dataset import Batches, MissingDataError, UnknownDataError, permutation
from data.digits import Digits
from data.images import TFDS
from data.pixels import decode, to_model_space, to_uint8
from data.tabular import Tabular
from data.toys import Checkerboard, EightGaussians, Pinwheel, SwissRoll, TwoMoons
from tests.conftest import needs, tiers

TOYS = [EightGaussians(), TwoMoons(), SwissRoll(), Checkerboard(), Pinwheel()]


def png(array, mode):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG") if mode else Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_digits_are_all_there_and_split_for_good():
    train, test = (Digits().arrays(split, 10_000) for split in ("train", "test"))
    assert train["x"].shape == (1437, 8, 8, 1)
    assert test["x"].shape == (360, 8, 8, 1)
    assert (train["x"].min(), train["x"].max()) == (-1.0, 1.0)
    assert set(np.unique(train["label"])) == set(range(10))
    both = np.concatenate([train["x"], test["x"]]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    original = load_digits().data / 8 - 1
    np.testing.assert_array_equal(np.sort(both.sum(1)), np.sort(original.astype(np.float32).sum(1)))
    with pytest.raises(UnknownDataError, match="train and test"):
        Digits().source("validation")


def test_batches_are_a_pure_function_of_seed_and_position():
    batches = Batches(Digits().source("train"), 100, seed=3)
    for position in (0, 13, 14, 999):  # 14 spans two epochs
        a, b = batches[position], Batches(Digits().source("train"), 100, seed=3)[position]
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["label"], b["label"])
    assert not np.array_equal(batches[0]["x"], batches[1]["x"])
    assert not np.array_equal(batches[0]["x"], Batches(Digits().source("train"), 100, seed=4)[0]["x"])


def test_an_epoch_shows_every_record_once():
    source = ArraySource(np.arange(30, dtype=np.uint8), None, lambda x: x.astype(np.float32))
    seen = np.concatenate([Batches(source, 12, seed=0)[i]["x"] for i in range(5)])  # two epochs
    np.testing.assert_array_equal(np.sort(seen[:30]), np.arange(30))
    np.testing.assert_array_equal(np.sort(seen[30:]), np.arange(30))
    assert not np.array_equal(seen[:30], seen[30:])
    assert sorted(permutation(0, 0, 30)) == list(range(30))


def test_processes_share_the_one_global_batch():
    source = Digits().source("train")
    whole = Batches(source, 24, seed=1)[5]["x"]
    parts = [Batches(source, 24, seed=1, rows=np.arange(8 * p, 8 * p + 8))[5]["x"] for p in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    scattered = np.asarray([0, 1, 8, 9, 23])  # as devices that are no neighbours hold them
    np.testing.assert_array_equal(Batches(source, 24, seed=1, rows=scattered)[5]["x"], whole[scattered])


def test_one_eight_and_sixteen_bit_images_fill_the_range():
    ramp8 = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    bits = Image.fromarray(ramp8 > 127)
    buffer = io.BytesIO()
    bits.save(buffer, "PNG")
    assert Image.open(io.BytesIO(buffer.getvalue())).mode == "1"
    for encoded in (buffer.getvalue(), png(ramp8, None), png((ramp8.astype(np.uint16) * 257), None)):
        for channels in (1, 3):
            x = to_model_space(decode(encoded, channels))
            assert x.shape == (16, 16, channels)
            assert x.dtype == np.float32
            assert (x.min(), x.max()) == (-1.0, 1.0)
    eight, sixteen = (
        to_model_space(decode(e, 1)) for e in (png(ramp8, None), png(ramp8.astype(np.uint16) * 257, None))
    )
    np.testing.assert_allclose(eight, sixteen, atol=1e-6)
    with pytest.raises(ValueError, match="unsigned integer"):
        to_model_space(np.zeros(3, np.float32))


def test_pixels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_model_space(levels)), levels)
    np.testing.assert_array_equal(to_uint8(np.asarray([-3.0, 3.0, np.inf, np.nan])), [0, 255, 255, 128])


def test_images_are_cut_square_and_resized():
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255  # the centred square is white
    x = decode(png(wide, None), 1, size=10)
    assert x.shape == (10, 10, 1)
    assert x.min() == 255


def test_mirroring_is_a_fair_pure_function_of_the_example():
    numbers = np.arange(20_000)
    coins = flipped(3, numbers)
    assert abs(coins.mean() - 0.5) < 0.02
    np.testing.assert_array_equal(flipped(3, numbers[100:200]), coins[100:200])
    assert not np.array_equal(flipped(4, numbers), coins)
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    source = ArraySource(images, None, to_model_space, mirror=True)
    records = np.zeros(64, int)
    batch = source.read(records, 3, np.arange(64))["x"]
    upright = to_model_space(images[0])
    for x, coin in zip(batch, flipped(3, np.arange(64)), strict=True):
        np.testing.assert_array_equal(x, upright[:, ::-1] if coin else upright)


@pytest.mark.parametrize(
    "toy",
    tiers(TOYS, first=lambda toy: type(toy).__name__ == "Checkerboard"),
    ids=lambda toy: type(toy).__name__,
)
def test_toy_densities_integrate_to_one_and_are_what_is_sampled(toy):
    axis = np.linspace(-4, 4, 801)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = np.concatenate([np.exp(toy.log_prob(jnp.asarray(part, jnp.float32))) for part in np.split(grid, 801)])
    cell = (axis[1] - axis[0]) ** 2
    assert density.sum() * cell == pytest.approx(1.0, abs=0.01)
    x = np.asarray(toy.sample(jax.random.key(0), 20_000))
    # entropy by the samples = entropy by the grid: the sampler draws from the stated density
    by_samples = -np.asarray(toy.log_prob(jnp.asarray(x))).mean()
    by_grid = -(density[density > 0] * np.log(density[density > 0])).sum() * cell
    assert by_samples == pytest.approx(by_grid, abs=0.04)
    np.testing.assert_allclose(x.mean(0), (grid * density[:, None]).sum(0) * cell, atol=0.05)
    variance = ((grid**2) * density[:, None]).sum(0) * cell
    np.testing.assert_allclose((x**2).mean(0), variance, rtol=0.05)
    assert 0.3 < variance.mean() < 2.0


def test_toys_stream_from_the_key():
    source = EightGaussians().source("train")
    a, b = Batches(source, 16, seed=0), Batches(source, 16, seed=1)
    np.testing.assert_array_equal(a[7]["x"], Batches(source, 16, seed=0)[7]["x"])
    assert not np.array_equal(a[7]["x"], b[7]["x"])
    parts = [Batches(source, 16, seed=0, rows=np.arange(8 * p, 8 * p + 8))[7]["x"] for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), a[7]["x"])
    assert not np.array_equal(EightGaussians().arrays("test", 50)["x"], EightGaussians().arrays("train", 50)["x"])


@pytest.mark.thorough
@needs("mnist")
def test_mnist_decodes_right():
    data = TFDS(name="mnist")
    assert (data.shape, data.num_classes) == ((28, 28, 1), 10)
    train = data.arrays("train", 60_000)
    assert train["x"].shape == (60_000, 28, 28, 1)
    assert ((train["x"] + 1) * 127.5).mean() == pytest.approx(33.318, abs=0.01)
    first = Batches(data.source("train"), 128, seed=0)[0]
    assert first["x"].dtype == np.float32
    assert (first["x"].min(), first["x"].max()) == (-1.0, 1.0)
    assert "tensorflow" not in sys.modules


@needs("omniglot")
def test_one_bit_omniglot_is_scaled_by_what_is_there():
    data = TFDS(name="omniglot", train="small1", test="small2", size=28)
    x = data.arrays("train", 50)["x"]
    assert x.shape == (50, 28, 28, 3)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    whole = TFDS(name="omniglot", train="small1", test="small2").arrays("train", 20)["x"]
    assert set(np.unique(whole)) == {-1.0, 1.0}


@pytest.mark.thorough
@needs("mnist")
def test_sets_too_large_to_hold_are_decoded_as_they_are_read(monkeypatch):
    from data import images

    data = TFDS(name="mnist", flip=True)
    held = Batches(data.source("train"), 16, seed=2)[3]
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    images._source.cache_clear()
    source = data.source("train")
    assert isinstance(source, images.RecordSource)
    read = Batches(source, 16, seed=2)[3]
    images._source.cache_clear()
    np.testing.assert_array_equal(read["x"], held["x"])
    np.testing.assert_array_equal(read["label"], held["label"])


def test_a_wrong_name_gets_the_nearest_ones():
    with pytest.raises(UnknownDataError, match="TFDS has no set 'mnits'; the nearest are mnist"):
        _ = TFDS(name="mnits").shape
    with pytest.raises(UnknownDataError, match="not 'validation'"):
        TFDS(name="mnist").source("validation")


def test_a_table_is_standardised_by_its_training_split(tmp_path):
    for data in (Tabular(name="wine"), Tabular(name=str(tmp_path / "table.csv"))):
        if data.name.endswith("csv"):
            rows = np.random.default_rng(0).normal(5.0, 3.0, (40, 3)).tolist()
            lines = ["a,b,c,d", *(f"{a},{b},{c},0.1" for a, b, c in rows), "1,,2,0.1"]
            (tmp_path / "table.csv").write_text("\n".join(lines))
        train, test = data.arrays("train", 1000)["x"], data.arrays("test", 1000)["x"]
        np.testing.assert_allclose(train.mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(train.std(axis=0), 1.0, atol=1e-5)
        assert train.shape[1:] == test.shape[1:] == data.shape
    assert data.shape == (3,)  # a column of one value has no density, a heading and a row with a gap are left out
    assert len(train) + len(test) == 40


@pytest.mark.parametrize(
    ("name", "message"),
    [("wine.txt", "neither a .npy or .csv file nor one of"), ("nowhere.csv", "there is no table nowhere.csv")],
)
def test_a_table_that_is_not_there(name, message):
    with pytest.raises((UnknownDataError, MissingDataError), match=message):
        Tabular(name=name).source("train")


@pytest.mark.thorough
@needs("mnist")
def test_a_part_of_a_split():
    data = TFDS(name="mnist", train="train[:50000]", test="train[50000:]")
    assert (len(data.source("train")), len(data.source("test"))) == (50_000, 10_000)
    with pytest.raises(UnknownDataError, match="has no split"):
        TFDS(name="mnist", train="trains[:10]").source("train")


def test_a_palettes_colours_are_averaged_and_not_its_numbers():
    image = Image.new("P", (4, 4))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putdata([0, 1] * 8)
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue(), channels=3, size=2), np.full((2, 2, 3), (100, 50, 0)))
