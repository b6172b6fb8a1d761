"""Process-wide JAX settings of the scripts; the packages set none."""

import os
from pathlib import Path

import jax


def start() -> None:
    """Turns the persistent compilation cache on, so that a second start is quick.

    In `~/.cache/thalweg/xla` (under XDG_CACHE_HOME if set); JAX_COMPILATION_CACHE_DIR moves it, and set empty turns it
    off.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(home / "thalweg" / "xla"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
