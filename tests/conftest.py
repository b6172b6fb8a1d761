"""Settings of the whole suite: CPU, eight virtual devices, strict shapes, a compilation cache."""

import functools
import gc
import hashlib
import os
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before jax is imported anywhere. Scripts that tests start as processes of their own get one device (see scripts.py).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is the compiler's: its programs run once, on tiny shapes, and need no optimising. XLA's older
# emitters, which users do not get, compile a fusion several times faster than those they do, and a program in one piece
# takes a tenth less than in several; a later jaxlib may have no such flags, and none starts with one it does not know.
JAXLIB_0_10 = version("jaxlib").startswith("0.10.")
QUICKLY = "--xla_backend_optimization_level=0"
if JAXLIB_0_10:
    QUICKLY += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# For `Lowered.compile`, where two programs are to round alike: the older emitters round by what is fused with what.
AS_USERS_COMPILE: dict[str, bool | str] | None = {"xla_cpu_use_fusion_emitters": True} if JAXLIB_0_10 else None
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        QUICKLY,
    ]
)

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook(
    ["data", "losses", "metrics", "models", "paths", "samplers", "training"], "beartype.beartype"
).__enter__()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# What is traced stays until its file is done, and is nobody's garbage: it is looked through less often than by default.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thalweg" / "xla-tests"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session", autouse=True)
def fitted_once() -> Iterator[None]:
    """The classifiers that metrics look through are fitted once for all processes of the suite, and all its runs."""
    from metrics import classifier

    fit, code = classifier.fitted, Path(classifier.__file__).read_bytes() + version("scikit-learn").encode()

    def kept(x: np.ndarray, label: np.ndarray) -> Any:
        digest = hashlib.sha256(b"".join([code, str((x.shape, label.dtype)).encode(), x.tobytes(), label.tobytes()]))
        path = CACHE.with_name("classifiers") / f"{digest.hexdigest()}.pickle"
        if path.exists():
            return pickle.loads(path.read_bytes())
        mlp = fit(x, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(mlp))
        part.replace(path)  # whole or not at all
        return mlp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "fitted", kept)
        yield


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    """What has been compiled for a file's tests is let go behind them: together it comes to gigabytes a process."""
    yield
    jax.clear_caches()
    gc.collect()


@functools.cache
def tfds_has(name: str) -> bool:
    """Whether a TFDS set is prepared where TFDS looks for it."""
    from data.dataset import MissingDataError
    from data.images import TFDS

    try:
        return bool(TFDS(name=name).shape)
    except MissingDataError:
        return False


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test, saying why, where the set is absent."""
    return pytest.mark.skipif(not tfds_has(name), reason=f"{name} is not prepared; set TFDS_DATA_DIR to where it is")


def tiers(cases: Iterable[Any], first: Collection[Any] | Callable[..., bool]) -> list[Any]:
    """All cases of a test, marked as thorough if they are not of the `first` tier, which `make test` runs.

    Args:
        cases: values, tuples of the values of several arguments, or a mapping from ids to values.
        first: the values, or the ids of a mapping; or a function of the arguments that tells.
    """
    names = list(cases)
    if not callable(first):
        assert all(name in names for name in first), "a case of the first tier is none"
    rows = [cases[name] for name in names] if isinstance(cases, Mapping) else names
    found = []
    for name, row in zip(names, rows, strict=True):
        arguments = row if isinstance(row, tuple) else (row,)
        of_first = first(*arguments) if callable(first) else name in first
        marks = () if of_first else pytest.mark.thorough
        found.append(pytest.param(*arguments, marks=marks, id=name if isinstance(cases, Mapping) else None))
    assert any(not param.marks for param in found), "no case is of the first tier"
    return found
