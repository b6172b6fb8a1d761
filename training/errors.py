"""Mistakes are answered with one message and a non-zero exit, never a traceback."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from data.dataset import MissingDataError, ReadError, UnknownDataError


class UserError(Exception):
    """A mistake in what was asked for; its message says what was wrong and what is allowed."""


class Stopped(Exception):  # noqa: N818, stopping when asked to is no error
    """Training ended before its last step. `code` is the exit status."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def exit_with(message: str, code: int = 2) -> NoReturn:
    """Ends the process with a message on stderr; 0, 130 and 143 are asked for, and no errors."""
    asked_for = code in (0, 130, 143)
    print(message if asked_for else f"error: {message}", file=sys.stderr, flush=True)
    if not asked_for and _is_one_of_several():
        # To leave in order would be to wait for the others, who wait for this one.
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code)


def _is_one_of_several() -> bool:
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    if distributed is None or not distributed.is_initialized():
        return False
    import jax

    return jax.process_count() > 1


def run(main: Callable[[], None]) -> None:
    """Runs a script's main. THALWEG_TRACEBACK=1 shows where an error came from."""
    try:
        main()
        sys.stdout.flush()
    except Stopped as stop:
        exit_with(str(stop), stop.code)
    except BrokenPipeError:  # whoever read along has read enough; what is left is not written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        if os.environ.get("THALWEG_TRACEBACK"):
            raise
        _explain(error)
    except KeyboardInterrupt:
        exit_with("interrupted", 130)


def _explain(error: Exception) -> NoReturn:
    from samplers.own import SamplerError  # here: a script that fails before it needs jax should not wait for it

    try:
        raise error
    except (UserError, SamplerError, MissingDataError, UnknownDataError) as mistake:
        exit_with(str(mistake))
    except MemoryError as failure:  # settings that ask for more than there is: NumPy says how much
        exit_with(f"there is not enough memory for these settings. {failure}".strip())
    except RecursionError:
        exit_with("these settings are nested too deeply, or name a run that comes from itself")
    except ReadError as failure:
        exit_with(str(failure), 1)
    except RuntimeError as failure:
        line = first_line(failure)
        if "RESOURCE_EXHAUSTED" in line:
            exit_with(
                f"a device has not memory enough ({line}). train.py EXPERIMENT --plan-memory says what would do; "
                "--remat auto, --accumulate N and a smaller --batch-size need less",
                1,
            )
        if not _is_one_of_several():
            raise
        exit_with(f"this process cannot go on with the others, one of which may be gone ({line})", 1)
    except OSError as failure:  # a full disk, a read-only folder, a file that is not there
        name = f": {failure.filename}" if failure.filename else ""
        exit_with(f"{failure.strerror or failure}{name}", 1)
