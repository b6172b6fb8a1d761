"""One process at a time trains in a run's folder; one at a time makes what is kept in it.

Of training the second is refused, and told of the first; where something is made, it waits until that is there.

The operating system holds the lock (flock) for as long as the process lives, so that nothing is left locked behind one
that was killed, whatever killed it. What the file says is for the reader alone.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import UserError

NAME = "lock"
BUSY = "is being trained in by"  # what the second is told
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of some network file systems


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder, which is there, to train in it.

    Raises:
      UserError: another process trains in it; says which.
    """
    with _opened(folder) as handle:
        if not _taken(handle, folder):
            raise UserError(f"{folder} {BUSY} {_holder(handle)}; one run a folder (--workdir)")
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder, which is there, to make what is missing in it; waits for a process that does."""
    with _opened(folder) as handle:
        if not _taken(handle, folder):
            print(f"waiting for what {_holder(handle)} makes in {folder}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
            _tell(handle)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{folder / NAME} is a link: nothing is written there") from None
    try:
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int, folder: Path) -> bool:
    """Whether this process has the lock now, or there are none; writes who it is."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"warning: the file system of {folder} has no locks; take care not to train twice in it", flush=True)
    _tell(handle)
    return True


def _tell(handle: int) -> None:
    """Writes who holds the folder."""
    me = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(me | {"command": " ".join(sys.argv)[:500]}).encode(), 0)


def _holder(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 2000, 0))
        return f"process {told['process']} on {told['host']}, since {told['since']} ({told['command']})"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return "another process"
