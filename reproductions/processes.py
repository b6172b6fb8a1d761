"""Several figures at a time: a process of reproduce.py for each, what it says in a file.

Figures share runs (`Cut`). One whose run another process trains is refused by the run's lock, and begun again when some
other figure is done.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from training.lock import BUSY


@dataclass(frozen=True)
class Ended:
    """What became of one."""

    name: str
    code: int  # its exit status
    said: list[str]
    began: float  # time.perf_counter()


def ended(names: Sequence[str], at_once: int, command: Callable[[str], list[str]], logs: Path) -> Iterator[Ended]:
    """All of them, as they end. Those that run when the caller stops asking, or is told to stop, are stopped.

    Args:
      command: what makes the figure of that name.
      logs: folder of NAME.log.
    """
    waiting, held, running = list(names), list[str](), dict[str, subprocess.Popen[bytes]]()
    began: dict[str, float] = {}
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                began[name] = time.perf_counter()
                with (logs / f"{name}.log").open("wb") as log:
                    running[name] = subprocess.Popen(command(name), stdout=log, stderr=subprocess.STDOUT)
            done = [name for name, process in running.items() if process.poll() is not None]
            for name in done:
                code = running.pop(name).returncode
                said = (logs / f"{name}.log").read_text(errors="replace").splitlines()
                if code and (running or len(done) > 1) and any(BUSY in line for line in said):
                    held.append(name)
                    continue
                waiting += held
                held.clear()
                yield Ended(name, code, said, began[name])
            if not running:
                waiting += held
                held.clear()
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _stop(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
