"""What a run says: a progress bar or plain lines, `metrics.jsonl`, TensorBoard events."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm


class Log:
    """Averages metrics over `every` steps and writes them everywhere. `added(row)` is what else a row of them holds."""

    def __init__(
        self,
        workdir: Path,
        first: int,
        last: int,
        every: int,
        added: Callable[[dict[str, float]], dict[str, float]] = lambda row: {},
    ) -> None:
        self.every = every
        self.last = last
        self.added = added
        self._file = (workdir / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first + 1)
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True) if terminal else None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.perf_counter()

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of one finished step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if self._bar is not None:
            self._bar.update()
        if step % self.every and step != self.last:
            return
        seconds = time.perf_counter() - self._since
        row = {name: total / self._count for name, total in self._sums.items()}
        row["steps_per_second"] = self._count / seconds
        self.row(step, row | self.added(row))
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}")
        else:
            left = (self.last - step) / row["steps_per_second"]
            speed = f"{row['steps_per_second']:.1f} steps/s"
            print(f"step {step}/{self.last}  loss {row['loss']:.4f}  {speed}  {left:.0f} s left", flush=True)
        self._sums, self._count, self._since = {}, 0, time.perf_counter()

    def row(self, step: int, values: dict[str, Any]) -> None:
        """One row of numbers at a step."""
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard."""
        self._board.add_image("samples", pixels, step, dataformats="HWC")

    def text(self, step: int, samples: list[str]) -> None:
        """What samples read, for TensorBoard."""
        self._board.add_text("samples", "\n\n---\n\n".join(samples), step)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._board.close()
        self._file.close()
