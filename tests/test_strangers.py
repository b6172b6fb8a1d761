"""Run folders made by a stranger: no code of theirs runs, nothing else is written, and no memory is taken.

Each attack is answered in one line with exit status 2. `evil.py` lies where an import would find it and leaves a mark.
"""

import io
import json
import os
import pickle
import re
import shutil
import sys
import traceback
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorstore

from data.dataset import MalformedDataError
from data.npz import read_npz
from data.pixels import decode
from data.tabular import Tabular
from experiments.digits_ddpm import tiny as digits
from models.torch_file import read as read_torch
from tests.scripts import here
from training import config
from training.checkpoint import Store
from training.cli import load_experiment
from training.codes import Codes
from training.errors import UserError
from training.handover import finished
from training.inputs import example_batch
from training.lock import locked
from training.loop import train
from training.mesh import Mesh
from training.plan import Plan
from training.reflow import Reflow
from training.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's failed loads
ONE = replace(digits, mesh=Mesh(data=1), steps=0, metrics=(), sample_every=0)
LARGE = 10**12  # elements; a little more than a machine has bytes
GIB = 2**30


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "digits"
    train(ONE, folder)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(ONE)


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """The file that `evil.py` makes when it is imported, or the class in it when it is unpickled."""
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    sys.modules.pop("evil", None)


class Evil:
    """What unpickling it does."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def rewrite(run: Path, where: str, value) -> None:
    """Sets a field of the run's config.json."""
    whole = json.loads((run / "config.json").read_text())
    *owners, last = where.split(".")
    owner = whole
    for name in owners:
        owner = owner[name]
    owner[last] = value
    (run / "config.json").write_text(json.dumps(whole))


def refused(script: str, *arguments) -> str:
    """What a script says that ends with status 2, in one line."""
    code, _, err = here(script, *arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def peak(function) -> int:
    """Bytes that a call takes at its height, as NumPy reports them."""
    tracemalloc.start()
    try:
        function()
    finally:
        height = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return height


@pytest.mark.parametrize("where", ["sampler.solver", "model", "data"])
@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "evil.Evil", "samplers.ddim.DDIM", "training.run.Run", "{tmp_path}/evil.py:Evil"],
)
def test_a_class_is_known_or_refused_and_never_imported(run, tmp_path, mark, where, name):
    rewrite(run, where, {"type": name.format(tmp_path=tmp_path), "command": f"touch {mark}"})
    for script in ("sample.py", "evaluate.py"):
        assert "no dataclass" in refused(script, run)
    assert not mark.exists()
    assert "evil" not in sys.modules


def test_a_file_of_samplers_is_named_on_the_command_line_alone(run, tmp_path, mark):
    rewrite(run, "sampler.solver", f"{tmp_path}/evil.py:Evil")
    assert "is not a Solver" in refused("sample.py", run)
    rewrite(run, "sampler.solver", {"type": "own.StepFunction"})
    assert "that the command line names" in refused("sample.py", run)
    rewrite(run, "sampler.solver", {"type": "toys.EightGaussians"})  # of the house, but no sampler
    assert "is not a Solver" in refused("sample.py", run)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../../evil", "mnist/../../evil", "mnist/..", "/evil", "file:///evil", "huggingface:evil", "evil:mnist"),
        *("mnist/data_dir={tmp_path},version=3.0.1", "mnist:3.0.1/data_dir={tmp_path}", "mnist/plain/x=1", "mnist\n"),
    ],
)
def test_a_data_set_is_one_of_tfds_own(run, tmp_path, mark, name):
    prepared = tmp_path / "mnist" / "3.0.1"  # from which TFDS would import the class
    prepared.mkdir(parents=True)
    (prepared / "features.json").write_text(json.dumps({"pythonClassName": "evil.Evil", "jsonFeature": {"json": "{}"}}))
    (prepared / "dataset_info.json").write_text(
        json.dumps({"name": "mnist", "version": "3.0.1", "fileFormat": "array_record"})
    )
    rewrite(run, "data", {"type": "images.TFDS", "name": name.format(tmp_path=tmp_path)})
    with mock.patch("tensorflow_datasets.builder") as builder:
        assert "TFDS has no set" in refused("sample.py", run)
    assert not builder.called
    assert not mark.exists()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("model.net.width", LARGE, "GiB, and this machine has"),
        ("model.net.width", 2**62, "the model cannot be built"),
        ("batch_size", LARGE, "not enough memory"),
        ("batch_size", 2**62, "examples cannot be made"),
        ("sampler.steps", LARGE, "not enough memory"),
        ("steps", 10**400, "is not a int"),
        ("steps", 1e300, "is not a int"),
        ("optimizer.learning_rate", 10**400, "is not a float"),
        ("ema", float("nan"), "ema=nan"),
    ],
)
def test_settings_that_ask_for_too_much_take_nothing(run, where, value, message):
    rewrite(run, where, value)
    assert message in refused("sample.py", run)


@pytest.mark.parametrize("content", ["[" * 10**6, '{"type": "grouped.Grouped", "data": ' * 900 + "1" + "}" * 900])
@pytest.mark.parametrize("file", ["config.json", "evaluation.json", "summary.json", "metrics.jsonl"])
def test_json_of_any_depth_is_read_or_refused(run, tmp_path, file, content):
    (run / file).write_text(content)
    if file == "config.json":
        assert "nested too deeply" in refused("sample.py", run)
    elif file == "evaluation.json":
        assert "not a list of evaluations" in refused("evaluate.py", run, "two_sample_accuracy")
    elif file == "summary.json":
        with pytest.raises(UserError, match=r"no summary\.json"):
            finished("--teacher", str(run))
    else:
        Run(run).forget_after(2)
        assert (run / file).read_text() == ""


def test_files_that_are_too_large_to_be_a_runs_are_not_read(run):
    os.truncate(run / "config.json", 2**40)  # takes no room on a disk
    assert f"it has {2**40} bytes" in refused("sample.py", run)
    kept = '{"step": 1, "steps_per_second": 2.0}\n'
    (run / "metrics.jsonl").write_text(kept.replace("1", "1e999") + kept)
    Run(run).forget_after(1)
    assert (run / "metrics.jsonl").read_text() == kept


def test_a_run_that_comes_from_itself_is_refused(run):
    rewrite(run, "data", {"type": "reflow.Reflow", "teacher": str(run)})
    assert "comes from itself" in refused("sample.py", run)


def stored(run: Path, item: str, array: str, **changes) -> None:
    """Has an array's own metadata in the newest checkpoint say otherwise."""
    base = f"file://{run}/checkpoints/0/{item}/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    entry = json.loads(store.read(f"{array}/zarr.json").result().value)
    chunks = changes.pop("chunks", None)
    if chunks:
        entry["chunk_grid"]["configuration"]["chunk_shape"] = entry["codecs"][0]["configuration"]["chunk_shape"] = (
            chunks
        )
    store.write(f"{array}/zarr.json", json.dumps(entry | changes).encode()).result()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [LARGE]}, rf"average.params.out.bias is float32[{LARGE}] there and float32[64] here"),
        ({"chunks": [LARGE]}, f"float32[64] in chunks of [{LARGE}] there"),
        ({"data_type": "float64"}, "average.params.out.bias is float64[64] there and float32[64] here"),
    ],
)
def test_arrays_are_compared_before_any_is_read(run, plan, changes, message):
    stored(run, "average", "params.out.bias", **changes)
    with mock.patch("orbax.checkpoint.v1.training.Checkpointer.load_checkpointables") as load:
        assert message in refused("sample.py", run)
        with pytest.raises(UserError, match=re.escape(message)):
            Store(run).restore(plan.state_like)
    assert not load.called


def test_what_a_run_has_reached_is_numbers_and_strings(run, plan):
    stored(run, "progress", "seconds", shape=[LARGE], chunks=[2**20])
    errors = []
    told = mock.patch("training.checkpoint._first_line", side_effect=errors.append)
    with told, pytest.raises(UserError, match="none of the checkpoints"):
        Store(run).restore(plan.state_like)
    assert f"is not compatible with the stored shape: ({LARGE},)" in "".join(traceback.format_exception(errors[0]))


def test_the_readers_of_a_checkpoint_are_ours(run, mark):
    """Its metadata names classes; none is imported, and those of orbax are not chosen by it either."""
    for handler in ("evil.Evil", "orbax.checkpoint.experimental.v1._src.handlers.json_handler.JsonHandler"):
        path = run / "checkpoints" / "0" / "_CHECKPOINT_METADATA"
        metadata = json.loads(path.read_text())
        path.write_text(json.dumps(metadata | {"item_handlers": dict.fromkeys(metadata["item_handlers"], handler)}))
        assert Run(run).averaged(ONE.resolved_model(), example_batch(ONE), ONE.mesh.build())[1] == 0
    assert not mark.exists()


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "average/_METADATA", "average/manifest.ocdbt"])
def test_a_pickle_in_a_checkpoint_is_not_unpickled(run, tmp_path, file):
    mark = tmp_path / "mark"
    (run / "checkpoints" / "0" / file).write_bytes(pickle.dumps(Evil(mark)))
    with mock.patch("time.sleep"):
        code, _, err = here("sample.py", run, "--n", "1")
    assert code == (0 if file.startswith("_") else 2), err
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"[]", b"[" * 10**5, b'{"commit_timestamp_nsecs": "now"}'])
def test_a_checkpoints_own_metadata_is_checked(run, content):
    (run / "checkpoints" / "0" / "_CHECKPOINT_METADATA").write_bytes(content)
    with pytest.raises(UserError, match="holds what is no checkpoint"):
        Store(run)


def member(array: np.ndarray, **header) -> bytes:
    """A .npy file whose header claims another shape or type."""
    file = io.BytesIO()
    own = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, own | header)
    file.write(array.tobytes())
    return file.getvalue()


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def pickled(mark: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray([Evil(mark)]), allow_pickle=True)
    return file.getvalue()


X = np.zeros((8, 2), np.float32)
HUGE = (2**28, 2)  # 2 GiB of float32: there may be so much
ATTACKS = {
    "objects": (lambda mark: {"x": pickled(mark)}, "Python objects, which are never loaded"),
    "header": (lambda mark: {"x": member(X, shape=HUGE)}, "its header claims"),
    "negative": (lambda mark: {"x": member(X, shape=(-8, -2))}, "its header claims"),
    "rows": (lambda mark: {"x": member(np.zeros((8, 3), np.float32))}, r"x is float32\[8, 3\] in it, not"),
    "type": (lambda mark: {"x": member(X.astype(np.float64))}, r"x is float64\[8, 2\] in it, not"),
    "record": (lambda mark: {"x": member(np.zeros((8, 2), "f4,f4"))}, "in it, not"),
    "name": (lambda mark: {"../x": member(X)}, "is none of x"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_archive_is_what_is_expected_before_memory_is_taken(tmp_path, name):
    make, message = ATTACKS[name]
    path = archive(tmp_path / "x.npz", **make(tmp_path / "mark"))

    def attempt() -> None:
        with pytest.raises(ValueError, match=message):
            read_npz(path, {"x": ((None, 2), np.dtype(np.float32))})

    assert peak(attempt) < GIB // 64
    assert not (tmp_path / "mark").exists()


def test_a_compressed_archive_is_refused(tmp_path):
    path = archive(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, x=member(np.zeros((2**22, 2), np.float32)))
    assert path.stat().st_size < 2**16

    def attempt() -> None:
        with pytest.raises(ValueError, match="larger than the file that it is in"):
            read_npz(path, {"x": ((None, 2), np.dtype(np.float32))})

    assert peak(attempt) < 2**22
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weights/data.pkl", pickle.dumps({}, protocol=2))
    with pytest.raises(ValueError, match="its parts are compressed"):
        read_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda mark: member(X, shape=HUGE), "its header claims"),
        (pickled, "Python objects"),
        (lambda mark: member(X[:0], descr="<U0", shape=(LARGE, 1)), "and not numbers"),
    ],
    ids=["header", "objects", "nothing"],
)
def test_a_table_is_what_its_file_has_room_for(tmp_path, content, message):
    (tmp_path / "table.npy").write_bytes(content(tmp_path / "mark"))

    def attempt() -> None:
        with pytest.raises(MalformedDataError, match=message):
            Tabular(name=str(tmp_path / "table.npy")).source("train")

    assert peak(attempt) < GIB // 64
    assert not (tmp_path / "mark").exists()


def test_pairs_that_a_stranger_left_are_refused(run, tmp_path):
    data = Reflow(teacher=str(run), pairs=8, shard=8)
    x = member(np.zeros((8, 8, 8, 1), np.float32))
    for members, message in (
        ({"x": pickled(tmp_path / "mark")}, "Python objects, which are never loaded"),
        ({"x": member(np.zeros((9, 8, 8, 1), np.float32))}, r"x is float32\[9, 8, 8, 1\] in it"),
        ({"x": x}, "it holds x, not x, "),
    ):
        archive(tmp_path / "00000.npz", **members)
        with pytest.raises(ValueError, match=message):
            data.read(tmp_path, 0)
    assert not (tmp_path / "mark").exists()


def test_codes_that_a_stranger_left_are_refused(run, tmp_path):
    config.save(replace(load_experiment("vqvae_digits", tiny=True), steps=0), run / "config.json")
    path, data = run / "codes" / "codes_train.npz", Codes(codes=str(run))
    path.parent.mkdir()
    codes, label = member(np.zeros((8, 16), np.uint8)), member(np.zeros(7, np.int32))
    for members, message in (
        ({"x": pickled(tmp_path / "mark")}, "Python objects, which are never loaded"),
        ({"x": codes}, "cannot be read .'made_by'"),
        ({"x": codes, "label": label, "made_by": member(np.asarray("0" * 64))}, "not as many of all arrays"),
    ):
        archive(path, **members)
        with pytest.raises(UserError, match=message):
            data.arrays("train", 1)
    assert not (tmp_path / "mark").exists()


def test_weights_of_features_are_no_program(run, tmp_path):
    (run / "weights.pth").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    features = ("--features", f"inception:{run}/weights.pth")
    assert "which is refused" in refused("evaluate.py", run, "frechet_distance", *features)
    assert not (tmp_path / "mark").exists()


def test_postscript_is_no_image():
    with mock.patch("PIL.EpsImagePlugin.Ghostscript") as interpreter, pytest.raises(OSError, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n", 1)
    assert not interpreter.called


LINKS = (
    "samples.png",
    "samples.npz",
    "evaluation.json.part",
    "metrics.jsonl",
    "summary.json.part",
    "tensorboard/events",
)


@pytest.mark.parametrize("name", [*LINKS, "checkpoints", "damaged", "pairs", "codes", "samples"])
def test_nothing_is_written_through_a_link_out_of_the_folder(run, tmp_path, name):
    victim, link = tmp_path / "victim", run / name
    victim.mkdir()
    (victim / "precious").write_text("kept")
    if link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(victim / "precious" if "." in name else victim)
    if name == "metrics.jsonl":
        (victim / "precious").unlink()  # a link to what is not there would make it
    message = f"{link} is a link to {victim}"
    assert message in refused("sample.py", run)
    assert message in refused("evaluate.py", run, "two_sample_accuracy")
    for opened in (lambda: Run(run).open(ONE, restart=False), lambda: finished("--initial", str(run))):
        with pytest.raises(UserError, match=message):
            opened()
    assert [path.read_text() for path in victim.iterdir()] == ["kept"] * (name != "metrics.jsonl")


def test_no_lock_is_taken_through_a_link(tmp_path):
    victim = tmp_path / "precious"
    victim.write_text("kept")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(UserError, match="lock is a link: nothing is written there"), locked(tmp_path):
        pass
    assert victim.read_text() == "kept"


def test_links_within_the_folder_are_followed_and_pipes_refused(run):
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples.npz").symlink_to(run / "samples" / "newest.npz")
    (run / "the_users_own").mkdir()
    (run / "the_users_own" / "link").symlink_to("/")
    code, _, err = here("sample.py", run, "--n", "1")
    assert code == 0, err
    assert (run / "samples" / "newest.npz").is_file()
    os.mkfifo(run / "evaluation.json")  # on which a reader waits for ever
    assert "neither a file nor a folder" in refused("evaluate.py", run)


def test_a_configuration_that_is_none_is_compared_with(run):
    rewrite(run, "model", {})
    with pytest.raises(UserError, match=r"model: None in the run, denoiser\.Denoiser asked for"):
        Run(run).open(ONE, restart=False)
    assert config.fits(2**62, int)
    assert not config.fits(2**63, float)
