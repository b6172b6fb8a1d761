"""Process-wide settings of the scripts; the packages set none."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

LARGEST = 2**31 - 1  # of a C int
MALLOC = ((-1, LARGEST), (-3, LARGEST), (-8, 1))  # <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX


def start() -> None:
    """Turns the persistent compilation cache on, so that a second start is quick, and keeps the memory that is freed.

    The cache is in `~/.cache/thalweg/xla` (under XDG_CACHE_HOME if set); JAX_COMPILATION_CACHE_DIR moves it, and set
    empty turns it off.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(home / "thalweg" / "xla"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    keep_freed_memory()
    sys.unraisablehook = _without_late_news(sys.unraisablehook)


def _without_late_news(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A hook of what no caller is left to catch, without what tensorstore's threads say of a save that has failed.

    That failure has been reported by then; the event loop that they would tell more of it is closed.
    """

    def told(what: Any) -> None:
        if not (isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"):
            hook(what)

    return told


def keep_freed_memory() -> bool:
    """Has glibc reuse blocks of up to 2 GiB; False where the C library is another, and nothing is done.

    On a CPU, XLA allocates a step's temporaries anew at every step. Left alone, glibc has a large block mapped and
    unmapped each time, and each 4 KiB of it costs a page fault: an eighth of a gradient's time where it is 52 MiB, a
    sixth where it is 204 (`python benchmarks/flows.py`, `--left-alone`; README). One arena, since a thread's own holds
    no block beyond 64 MiB. The process holds on to the most that it ever used at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, value) for option, value in MALLOC)
