"""What a run has saved, and what is said of it where the run has to stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from training.checkpoint import Store
from training.errors import Stopped
from training.state import TrainState

KNOWN = (
    "No space left on device",
    "File too large",
    "Permission denied",
    "Read-only file system",
    "Disk quota",
    "Input/output error",
    "Stale file handle",
)


class Saver:
    """The saves of one run; `saved` is the step of the last one."""

    def __init__(self, store: Store, saved: int | None) -> None:
        self.store, self.saved = store, saved

    def save(self, state: TrainState, progress: dict[str, Any], step: int) -> None:
        """Begins a save.

        Raises:
          Stopped: this one or the one before cannot be written.
        """
        self._guarded(lambda: self.store.save(state, progress))
        self.saved = step

    def wait(self) -> None:
        """Until all is on disk.

        Raises:
          Stopped: it cannot be written.
        """
        self._guarded(self.store.wait)

    def kept(self) -> str:
        if self.saved is None:
            return "nothing had been saved yet"
        return f"the last good checkpoint is step {self.saved} in {self.store.folder}"

    def intact(self) -> str:
        kept = self.store.steps()
        return (
            f"checkpoints {kept} in {self.store.folder} are intact" if kept else "no checkpoint had been written before"
        )

    @contextmanager
    def or_stop(self) -> Iterator[None]:
        """Whatever else cannot be written (a log, a picture) stops the run as a checkpoint does."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            name = f" {error.filename}" if error.filename else ""
            raise Stopped(
                f"what a run writes{name} could not be written ({_reason(error)}); {self.intact()}", 1
            ) from error

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a full disk reaches us as OSError, ValueError or tensorstore's own
            raise Stopped(f"a checkpoint could not be written ({_reason(error)}); {self.intact()}", 1) from error


def _reason(error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
    return next((phrase for phrase in KNOWN if phrase in str(error)), first_line)
