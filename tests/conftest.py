"""Settings of the whole suite: CPU, eight virtual devices, strict shapes, a compilation cache."""

import os
from importlib.metadata import version
from pathlib import Path

# Before jax is imported anywhere. Scripts that tests start as processes of their own get one device (see scripts.py).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is the compiler's: its programs run once, on tiny shapes, and need no optimising. XLA's older
# emitters, which users do not get, compile a fusion several times faster than those they do; a later jaxlib may have no
# such flag, and none starts with a flag that it does not know.
OLDER_EMITTERS = version("jaxlib").startswith("0.10.")
# For `Lowered.compile`, where two programs are to round alike: the older emitters round by what is fused with what.
AS_USERS_COMPILE: dict[str, bool | str] | None = {"xla_cpu_use_fusion_emitters": True} if OLDER_EMITTERS else None
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if OLDER_EMITTERS else "",
    ]
)

import jaxtyping  # noqa: E402

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
