"""Inception-v3 and the reader of its weights, against what PyTorch answered (benchmarks/inception_arrays.py)."""

import functools
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from data.dataset import MissingDataError
from data.digits import Digits
from models import inception
from models.inception import from_torch, load, resized
from models.torch_file import read
from training.errors import UserError
from training.features import features_of

ARRAYS = np.load(Path(__file__).with_name("inception_arrays.npz"))


def published_shapes():
    rows = (line.split() for line in str(ARRAYS["state"]).split("\n"))
    return {name: tuple(map(int, shape)) for name, *shape in rows}


@functools.cache
def weights():
    """As benchmarks/inception_arrays.py draws them."""
    stream, found = np.random.RandomState(0), {}
    for name, shape in published_shapes().items():
        if name.startswith("fc.") or name.endswith(".num_batches_tracked"):
            continue
        kind = name.rsplit(".", 1)[1]
        if kind == "weight" and len(shape) == 4:
            value = stream.randn(*shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        elif kind in ("weight", "running_var"):
            value = stream.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * stream.randn(*shape)
        found[name] = value.astype(np.float32)
    return found


class Coloured(Digits):
    @property
    def shape(self):
        return (12, 9, 3)


@pytest.mark.thorough
def test_the_features_are_those_of_pytorchs_network(tmp_path, monkeypatch):
    """From the name on the command line to the 2048 numbers."""
    file = tmp_path / "weights.pth"
    monkeypatch.setattr(inception, "read", lambda path: weights() if path == file else {})
    features = features_of(f"inception:{file}", Coloured())
    found, wanted = features(ARRAYS["images"]), ARRAYS["output"]
    assert (found.dtype, features.size((12, 9, 3))) == (np.float64, 2048)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * wanted.std())
    assert features.name.startswith("2048 features of Inception-v3 (digest ")
    other = {**weights(), "Conv2d_1a_3x3.bn.bias": np.ones(32, np.float32)}
    monkeypatch.setattr(inception, "read", lambda path: other)
    assert features_of(f"inception:{file}", Coloured()).name != features.name


@pytest.mark.parametrize("size", [(5, 8), (340, 6)], ids=["stretched", "shrunk in height"])
def test_images_are_resized_between_the_centres_of_their_pixels(size):
    """Output pixel i lies at (i + ½)·n/299 − ½ of n pixels, held within the image; its two neighbours are mixed."""

    def matrix(n):
        at = np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1)
        below = np.minimum(np.floor(at).astype(int), n - 2)
        mix = np.zeros((299, n))
        mix[np.arange(299), below] = 1 - (at - below)
        mix[np.arange(299), below + 1] += at - below
        return mix

    x = np.random.RandomState(0).uniform(-1, 1, (2, *size, 1)).astype(np.float32)
    wanted = np.einsum("ih,jw,bhwc->bijc", matrix(size[0]), matrix(size[1]), x.astype(np.float64))
    found = np.asarray(resized(jnp.asarray(x)))
    np.testing.assert_allclose(found[..., :1], wanted, atol=1e-4)  # positions are float32
    assert found.shape == (2, 299, 299, 3)
    assert (found == found[..., :1]).all()  # grey


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="images \\[H, W, 1 or 3\\]"):
        resized(jnp.zeros((2, 8, 8, 2)))


def test_weights_are_checked_name_by_name():
    whole = {name: np.broadcast_to(np.float32(0.0), shape) for name, shape in published_shapes().items()}
    assert "fc.weight" in whole
    assert from_torch(whole)  # with the classifier and the norms' counters, which are not looked at
    assert from_torch({**whole, "AuxLogits.fc.weight": np.zeros(3)})
    broken = {name: value for name, value in whole.items() if not name.startswith("Mixed_6e.")}
    broken |= {"head.weight": np.zeros(3), "Mixed_5b.branch1x1.conv.weight": np.zeros((64, 192, 3, 3))}
    with pytest.raises(ValueError, match="not the weights of FID's Inception-v3") as caught:
        from_torch(broken)
    assert str(caught.value) == (
        "these are not the weights of FID's Inception-v3: "
        "missing Mixed_6e.branch1x1.bn.bias, Mixed_6e.branch1x1.bn.running_mean and 48 more; "
        "superfluous head.weight; "
        "of another shape Mixed_5b.branch1x1.conv.weight [64, 192, 3, 3] for [64, 192, 1, 1]"
    )


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "tensors.pth"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_file_of_torch_save_is_read_without_torch(tmp_path, form):
    """Views of one storage, every width of number, nothing and a single one."""
    wanted = {key.removeprefix("tensor/"): ARRAYS[key] for key in ARRAYS.files if key.startswith("tensor/")}
    found = read(file_of(tmp_path, ARRAYS[form].tobytes()))
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        kept = {"half": np.float16, "bfloat16": jnp.bfloat16}.get(name, wanted[name].dtype)
        assert (tensor.dtype, tensor.shape, tensor.flags.writeable) == (kept, wanted[name].shape, False), name
        np.testing.assert_array_equal(tensor.astype(wanted[name].dtype), wanted[name], err_msg=name)


def archive(content: bytes, storage: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("archive/data.pkl", content)
        zipped.writestr("archive/data/0", storage)
    return file.getvalue()


def legacy(content: bytes, storages: bytes = b"", **other: bytes) -> bytes:
    """A file in the format of before PyTorch 1.6, of the dictionary's pickle and what follows the list of storages."""
    parts = {
        "magic": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
        "version": pickle.dumps(1001, protocol=2),
        "system": pickle.dumps({"little_endian": True, "type_sizes": {"int": 4}}, protocol=2),
        "dictionary": content,
        "keys": pickle.dumps(["0"] if storages else [], protocol=2),
    }
    return b"".join((parts | other).values()) + storages


def stored(numbers: np.ndarray) -> bytes:
    return np.int64(numbers.size).tobytes() + numbers.tobytes()


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_nothing_that_a_file_names_is_executed(tmp_path):
    """Neither by the dictionary's pickle nor by one that stands before or behind it."""
    trace = tmp_path / "trace"
    for call, name in (
        (Call(os.mkdir, str(trace)), f"{os.mkdir.__module__}.mkdir"),
        (Call(eval, "1 + 1"), "builtins.eval"),
        (Call(np.zeros, 3), "numpy.*zeros"),
        (OrderedDict(weight=Call(os.getcwd)), f"{os.getcwd.__module__}.getcwd"),
    ):
        content, empty = pickle.dumps(call, protocol=4), pickle.dumps({}, protocol=2)
        others = [legacy(empty, **{place: content}) for place in ("magic", "version", "system", "keys")]
        for whole in (archive(content), legacy(content), *others):
            with pytest.raises(ValueError, match=f"holds {name}, which is refused"):
                read(file_of(tmp_path, whole))
    assert not trace.exists()


def pid(length: int = 4, storage: str = "FloatStorage", part: str = "") -> str:
    """A storage of four numbers in the oldest, readable protocol."""
    return f"(S'storage'\nctorch\n{storage}\nS'0'\nS'cpu'\nI{length}\n{part}tQ"


def tensor(size: str, offset: int = 0, **how) -> bytes:
    """A pickle of {"w": a tensor of that storage}."""
    made = f"ctorch._utils\n_rebuild_tensor_v2\n({pid(**how)}I{offset}\n(I{size}\nt(I1\ntI00\nNtR"
    return f"(dS'w'\n{made}s.".encode()


def test_a_dictionary_that_hides_its_items_is_read_all_the_same(tmp_path):
    """A pickle may set an attribute of an ordered dictionary, and so hide a method."""
    hidden = tensor(size="4").replace(b"(d", b"ccollections\nOrderedDict\n(tR(dS'items'\nI1\nsb", 1)
    found = read(file_of(tmp_path, archive(hidden, np.arange(4, dtype=np.float32).tobytes())))
    np.testing.assert_array_equal(found["w"], np.arange(4))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_tensor_lies_within_its_storage(tmp_path, form):
    numbers = np.arange(4, dtype=np.float32)

    def of(**how):
        content = tensor(**how)
        whole = archive(content, numbers.tobytes()) if form == "zip" else legacy(content, stored(numbers))
        return read(file_of(tmp_path, whole))["w"]

    np.testing.assert_array_equal(of(size="4"), numbers)
    np.testing.assert_array_equal(of(size="3", offset=1), numbers[1:])
    for how in ({"size": "5"}, {"size": "3", "offset": 2}):
        with pytest.raises(ValueError, match="larger than its storage"):
            of(**how)
    with pytest.raises(ValueError, match="not what PyTorch writes"):
        of(size="3", offset=-1)
    with pytest.raises(ValueError, match=r"storage 0 has (16 bytes, not 20|4 numbers, not 5)"):
        of(size="5", length=5)
    with pytest.raises(ValueError, match=r"torch\.QInt8Storage, which is refused"):
        of(size="4", storage="QInt8Storage")


def test_a_storage_of_an_old_file_may_be_a_part_of_another(tmp_path):
    numbers = np.arange(4, dtype=np.float32)
    of = lambda **how: read(file_of(tmp_path, legacy(tensor(**how), stored(numbers))))["w"]  # noqa: E731
    np.testing.assert_array_equal(of(size="4", part="N"), numbers)
    np.testing.assert_array_equal(of(size="2", part="(S'1'\nI1\nI3\nt", offset=1), numbers[2:])
    with pytest.raises(ValueError, match="larger than its storage"):
        of(size="3", part="(S'1'\nI1\nI2\nt")


def test_an_old_file_holds_the_storages_that_it_lists(tmp_path):
    content, four = tensor(size="4"), stored(np.arange(4, dtype=np.float32))
    other = pickle.dumps(["1"], protocol=2)
    twice = content[:-1] + f"S'v'\n{pid(storage='DoubleStorage', length=2)}s.".encode()
    for whole, message in (
        (legacy(content, four, keys=other), "list of storages is not that of its tensors"),
        (legacy(content, four, keys=pickle.dumps(["0", "0"], protocol=2)), "list of storages"),
        (legacy(content), "list of storages"),
        (legacy(tensor(size="4", length=10**15), four), "storage 0, of 10{15} numbers, is larger than the file"),
        (legacy(tensor(size="4", length=-1), four), "storage 0, of -1 numbers"),
        (legacy(twice, four), "storage 0 is of two types or lengths"),
        (legacy(content, four, version=pickle.dumps(1002, protocol=2)), "version 1002 of the format, not 1001"),
        (legacy(content, four, magic=pickle.dumps(1001, protocol=2)), "nor begins as those before PyTorch 1.6"),
        (legacy(content, four, system=b"cos\ngetcwd\n."), r"os\.getcwd, which is refused"),
        (legacy(content, four, keys=f"({pid()}l.".encode()), "storage, which is refused"),
    ):
        with pytest.raises(ValueError, match=message):
            read(file_of(tmp_path, whole))


def test_an_old_file_that_is_cut_anywhere_is_said_to_be(tmp_path):
    whole = legacy(tensor(size="4"), stored(np.arange(4, dtype=np.float32)))
    np.testing.assert_array_equal(read(file_of(tmp_path, whole))["w"], np.arange(4))
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"cannot be read|no file of torch\.save") as caught:
            read(file_of(tmp_path, whole[:end]))
        assert "\n" not in str(caught.value)
    for end in (-1, -16, -17, -24):
        with pytest.raises(ValueError, match="ends within storage 0"):
            read(file_of(tmp_path, whole[:end]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"weights", "no zip archive"),
        (archive(b""), "cannot be read"),
        (archive(pickle.dumps({"w": 1}, protocol=2)), "its 'w' is no tensor"),
        (archive(pickle.dumps([1], protocol=2)), "holds a list, not a dictionary"),
        (ARRAYS["zip"].tobytes()[:-200], "no zip archive"),
        (legacy(pickle.dumps({"w": 1}, protocol=2)), "its 'w' is no tensor"),
        (legacy(pickle.dumps([1], protocol=2)), "holds a list, not a dictionary"),
        (ARRAYS["legacy"].tobytes()[:-1], "ends within storage"),
    ],
    ids=["text", "empty", "number", "list", "cut", "old number", "old list", "old cut"],
)
def test_what_is_no_file_of_tensors_is_said_in_one_line(tmp_path, content, message):
    path = file_of(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_weights_are_the_users_to_supply(tmp_path):
    with pytest.raises(MissingDataError, match=r"FID's Inception weights as published for PyTorch.*you supply"):
        load(tmp_path / "absent.pth")
    path = file_of(tmp_path, ARRAYS["zip"].tobytes())
    with pytest.raises(UserError, match=f"--features inception:{path}: these are not the weights") as caught:
        features_of(f"inception:{path}", Digits())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--features inception: names no file of weights; it is inception:FILE"):
        features_of("inception:", Digits())
