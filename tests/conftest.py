"""Settings of the whole suite: CPU, eight virtual devices, strict shapes, a compilation cache."""

import os
from pathlib import Path

# Before jax is imported anywhere. Scripts that tests start as processes of their own get one device (see test_scripts).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is the compiler's: its programs run once, on tiny shapes, and need no optimising.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)

import jaxtyping

jaxtyping.install_import_hook(
    ["data", "losses", "metrics", "models", "paths", "samplers", "training"], "beartype.beartype"
).__enter__()

import jax  # noqa: E402
import pytest  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thalweg" / "xla-tests"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


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
