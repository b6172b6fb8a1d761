"""Signals that ask a run to stop: it saves after the step under way, and exits as schedulers expect.

SIGTERM, which preemption sends, ends in exit status 143 (128 + 15): not done, to be run again. SIGINT, the user's own
Ctrl-C, ends in 130 (128 + 2). Asked twice, the process stops at once. Of several processes any may be told, by either
signal, which is a SIGTERM then; jax's preemption service tells the others, and all save after the same step.
"""

import os
import signal
import threading
from typing import Any

import jax

from training.distributed import preempted

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopping:
    """Catches the signals while it is entered."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            # jax.distributed has a handler of SIGTERM of its own, which must stay.
            handlers = dict.fromkeys(EXIT_STATUS, self._catch) if jax.process_count() == 1 else {signal.SIGINT: _term}
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether to stop after this step. Of several processes each asks once a step."""
        if preempted(step):
            self.caught = signal.SIGTERM
        return self.caught is not None

    @property
    def name(self) -> str:
        return self.caught.name if self.caught else ""

    @property
    def code(self) -> int:
        """The exit status."""
        return EXIT_STATUS[self.caught] if self.caught else 0

    def _catch(self, number: int, frame: Any) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = signal.Signals(number)
        # Not print: what is written may have been interrupted in the middle of a line.
        os.write(2, f"{self.name}: stopping after the step under way; once more stops at once\n".encode())


def _term(number: int, frame: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
