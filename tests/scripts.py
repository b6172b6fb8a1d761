"""The scripts, as processes of their own (`start`, `finish`: one device, as a user runs them) or in this one (`here`).

A process takes seconds to import what it needs: it is for signals, exit statuses and what is written at exit; `here`,
on the suite's eight devices, for all else.
"""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from tests.conftest import CACHE
from training import errors

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
}


def start(script: str, *arguments: str, limit: int = 0, **environment: str) -> subprocess.Popen[str]:
    """Args: limit, of the size of files in bytes, as on a full disk; 0 is none."""
    limited = (
        f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return subprocess.Popen(
        [sys.executable, *(["-c", limited] if limit else []), str(ROOT / script), *arguments],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = start(script, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def here(script: str, *arguments: str | Path) -> tuple[int, str, str]:
    """The same of this process, whose settings stay the suite's."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    module = importlib.import_module(script.removesuffix(".py"))
    with (
        mock.patch("sys.argv", [script, *map(str, arguments)]),
        mock.patch("training.startup.start"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            errors.run(module.main)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()
