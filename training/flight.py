"""The step on the device while the host prepares the next one: its metrics, checked and logged once they are there."""

import math
from typing import Any, Literal

import jax
import numpy as np

from training.errors import Stopped
from training.log import Log
from training.saving import Saver
from training.watchdog import Watchdog

MOST_SKIPPED = 100  # steps in a row that are not finite, after which a run stops whatever it was told


class Flight:
    """One step in flight at most; what it keeps beside it, the last loss and how many steps were not taken."""

    def __init__(self, log: Log, watchdog: Watchdog, saver: Saver, on_nan: Literal["stop", "skip"]) -> None:
        self.log, self.watchdog, self.saver, self.on_nan = log, watchdog, saver, on_nan
        self.loss, self.skipped = math.nan, 0
        self._step, self._metrics, self._waited = 0, None, 0.0
        self._in_a_row = 0

    @property
    def is_over(self) -> bool:
        """Whether the device has nothing to do."""
        return self._metrics is None or self._metrics["loss"].is_ready()

    def begin(self, step: int, metrics: Any, waited: float) -> None:
        """Args: waited, seconds in which the device may have stood idle for want of this step's batch."""
        self._step, self._metrics, self._waited = step, metrics, waited

    def finish(self) -> None:
        """Waits for the step, if there is one, checks it and logs it.

        Raises:
          Stopped: something of it is not finite, and steps are not to be skipped, or too many of them were.
        """
        if self._metrics is None:
            return
        jax.block_until_ready(self._metrics)  # at once: else each of them waits by itself
        values = {name: float(np.asarray(value)) for name, value in self._metrics.items()}
        self._metrics = None
        wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        if wrong:
            self._answer(f"step {self._step}: {', '.join(wrong)}", bool(values.get("skipped")))
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.loss = finite.get("loss", self.loss)
        self.log.step(self._step, finite | {"input_wait": self._waited})
        self.watchdog.done(self._step)

    def _answer(self, said: str, skipped: bool) -> None:
        if self.on_nan == "stop" or self._in_a_row > MOST_SKIPPED:
            self.saver.wait()
            raise Stopped(
                f"{said}; stopped, nothing was overwritten, {self.saver.kept()}. The same command with --replay "
                f"{self._step} shows what of the batch it comes from",
                1,
            )
        self.skipped += skipped
        self.log.say(f"warning: {said}; {'left out' if skipped else 'taken all the same'} (--replay {self._step})")
