"""A watchdog: says when a step takes far longer than steps do, and what the process is doing then.

A run that hangs says nothing: a host that is gone, a file system that does not answer, a deadlock. The watchdog speaks
when a step has not finished in `times` of the median of the last ones, and again whenever that time has doubled; it
ends nothing, since what is slow may yet end.
"""

import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REMEMBERED = 101  # steps that the median is of
FIRST = 5  # steps before there is a median to speak of: the first ones compile
LEAST = 10.0  # seconds that are never called long
BESIDE = 600.0  # nor are these, of saving or drawing, which take as long as they take


class Watchdog:
    """`done(step)` after every step; `beside(what)` around what is no step, such as saving, and has no median."""

    def __init__(
        self,
        times: float,
        say: Callable[[str], None],
        least: float = LEAST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: times, of the median; 0 watches nothing. say, where a line goes, from another thread."""
        self.times, self.say, self.least, self.clock = times, say, least, clock
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._step, self._since, self._what, self._next = 0, clock(), "", 0.0
        self._closed = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if times:
            self._thread.start()

    def done(self, step: int) -> None:
        """The step is done; the next begins."""
        self._took.append(self.clock() - self._since)
        self._step = step
        self._begin("")

    @contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """Not the step but this takes the time; behind it the step's time begins anew."""
        self._begin(what)
        yield
        self._begin("")

    def _begin(self, what: str) -> None:
        self._since, self._what, self._next = self.clock(), what, 0.0

    def overdue(self) -> str | None:
        """What is to be said now, if anything."""
        step, since, what = self._step, self._since, self._what
        if len(self._took) < FIRST:
            return None
        median, waited = statistics.median(self._took), self.clock() - since
        if waited < max(self.times * median, BESIDE if what else self.least, self._next):
            return None
        self._next = 2.0 * waited
        frame = sys._current_frames().get(self._watched)
        where = "".join(traceback.format_stack(frame, limit=None)[-4:]).rstrip() if frame else "  nowhere"
        return (
            f"watchdog: {what or 'step'} {'after step ' + str(step) if what else step + 1} has not finished in "
            f"{waited:.0f} s, and the median step takes {median:.3g} s; the process is here:\n{where}"
        )

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.least / 4)):
            line = self.overdue()
            if line:
                self.say(line)
