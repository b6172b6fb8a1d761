"""What a run says: a progress bar or plain lines, `metrics.jsonl`, TensorBoard events."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

RATE = "steps_per_second"  # in every row of training, and in none of what is measured behind it
PROTO: Any = event_pb2  # generated code, which no type checker reads


class Events:
    """TensorBoard's file, written at once: a writer with a thread of its own hangs, or says nothing, on a full disk."""

    def __init__(self, folder: Path, first: int) -> None:
        """Args: first, the step from which on what another file of the folder tells is void."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._write(first, session_log=PROTO.SessionLog(status=PROTO.SessionLog.START))

    def add(self, step: int, *parts: Any) -> None:
        """Summaries of a step, as `tensorboardX.summary` makes them."""
        for part in parts:
            self._write(step, summary=part)
        self._writer.flush()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(PROTO.Event(wall_time=time.time(), step=step, **what))

    def close(self) -> None:
        self._writer.close()


class Log:
    """Averages metrics over `every` steps and writes them everywhere. `added(row)` is what else a row of them holds.

    Of several processes one `writes`; the others only count.
    """

    def __init__(
        self,
        workdir: Path,
        first: int,
        last: int,
        every: int,
        added: Callable[[dict[str, float]], dict[str, float]] = lambda row: {},
        writes: bool = True,
    ) -> None:
        self.every = every
        self.last = last
        self.added = added
        self._file = (workdir / "metrics.jsonl").open("a") if writes else None
        self._board = Events(workdir / "tensorboard", first + 1) if writes else None
        terminal = writes and sys.stderr.isatty()
        self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True) if terminal else None
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of one finished step; what one does not tell counts in no mean."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        if self._bar is not None:
            self._bar.update()
        if step % self.every and step != self.last:
            return
        seconds = time.perf_counter() - self._since
        row = {name: total / self._counts[name] for name, total in self._sums.items()}
        row[RATE] = self._steps / seconds
        self.row(step, row | self.added(row))
        loss = f"loss {row['loss']:.4f}" if "loss" in row else "no loss"
        if self._bar is not None:
            self._bar.set_postfix_str(loss)
        else:
            left = (self.last - step) / row[RATE]
            speed = f"{row[RATE]:.1f} steps/s"
            print(f"step {step}/{self.last}  {loss}  {speed}  {left:.0f} s left", flush=True)
        self._sums, self._counts, self._steps, self._since = {}, {}, 0, time.perf_counter()

    def row(self, step: int, values: dict[str, Any]) -> None:
        """One row of numbers at a step."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        self._board.add(step, *(summary.scalar(name, value) for name, value in values.items()))

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard."""
        if self._board is not None:
            self._board.add(step, summary.image("samples", pixels, dataformats="HWC"))

    def text(self, step: int, samples: list[str]) -> None:
        """What samples read, for TensorBoard."""
        if self._board is not None:
            self._board.add(step, summary.text("samples", "\n\n---\n\n".join(samples)))

    def close(self) -> None:
        """Closes what is open. What could not be written has been reported when it was to be."""
        if self._bar is not None:
            self._bar.close()
        for file in (self._board, self._file):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
