"""What the training loop adds to the jitted step: `python benchmarks/train_overhead.py [EXPERIMENT] [--windows 80]`.

One run of train.py's own loop (data pipeline, every step's metrics fetched, checked and logged, signals caught, the
watchdog, the folder's lock, steps that are not finite skipped, checkpoints) is paused every 25 steps, and each time the
bare jitted step is run 24 times in a Python loop over the same batches, already on the device. So both are timed in
alternation on the same machine minute. The ratio is the median over pairs of neighbouring windows without a save; what
a save adds to its window is told beside it, since it is the same whatever the step takes. Quartiles are printed because
the machine's noise is part of the answer.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax

from training import loop
from training.cli import load_experiment
from training.experiment import Checkpoints
from training.log import Log
from training.plan import Plan
from training.startup import start

# While a window opens, the step in flight ends; the loop is left with its step 25 dispatched and 24 computed.
WINDOW = 25
COMPUTED = WINDOW - 1
MIDDLE = WINDOW // 2  # windows end between two rows of the log, which the device does not wait for
SAVED_EVERY = 8 * WINDOW


class Bare:
    """The jitted step alone, on batches that are on the device."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.batches = [jax.device_put(plan.batches[i], plan.batch_sharding) for i in range(COMPUTED)]
        self.state, _ = plan.train_step(plan.initial(), self.batches[0])

    def seconds(self) -> float:
        jax.block_until_ready(self.state)
        began = time.perf_counter()
        for batch in self.batches:
            self.state, _ = self.plan.train_step(self.state, batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="digits_ddpm")
    parser.add_argument("--windows", type=int, default=80)
    options = parser.parse_args()
    start()
    experiment = replace(
        load_experiment(options.experiment),
        steps=WINDOW * (options.windows + 2),
        log_every=WINDOW,
        sample_every=0,
        metrics=(),
        checkpoints=Checkpoints(every=SAVED_EVERY),
        on_nan="skip",
    )
    bare = Bare(Plan(replace(experiment, on_nan="stop")))
    pause = 3 * bare.seconds() / COMPUTED
    looped: list[float] = []
    alone: list[float] = []

    class PausingLog(Log):
        since = 0.0

        def step(self, step: int, metrics: dict[str, Any]) -> None:
            super().step(step, metrics)
            if step % WINDOW == MIDDLE:
                looped.append(time.perf_counter() - self.since)
                time.sleep(pause)  # for the step in flight
                alone.append(bare.seconds())
                time.sleep(pause)  # the same rest for both
                self.since = time.perf_counter()

    loop.Log = PausingLog
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        loop.train(experiment, Path(folder))

    # The first window holds the start, the last ends without a step in flight.
    inside = range(1, len(looped) - 1)
    quiet = [i for i in inside if i * WINDOW % SAVED_EVERY]
    for name, windows in (("train.py's loop", looped), ("bare jitted step", alone)):
        low, median, high = statistics.quantiles([1e3 * windows[i] / COMPUTED for i in quiet], n=4)
        print(f"{name:17} {median:7.3f} ms/step  (quartiles {low:.3f} to {high:.3f})")
    low, ratio, high = statistics.quantiles([looped[i] / alone[i] for i in quiet], n=4)
    measured = f"{len(quiet)} windows of {COMPUTED} steps"
    print(f"{options.experiment}: {measured}, ratio {ratio:.3f} ({low:.3f} to {high:.3f})")
    saves = [looped[i] - ratio * alone[i] for i in inside if i not in quiet]
    if saves:
        save, every = statistics.median(saves), Checkpoints.every
        share = save / (every * statistics.median(alone) / COMPUTED)
        told = f"a save takes {1e3 * save:.0f} ms beside (median of {len(saves)})"
        print(f"{told}: {share:.1%} where they are {every} steps apart, the default")


if __name__ == "__main__":
    main()
