"""What a step waits for its batch: `TFDS_DATA_DIR=… python benchmarks/input_pipeline.py [--steps 16]`.

Two sets through TFDS, read by threads and by 1, 2 and 4 data workers: mnist, which is held in memory, under the step of
mnist_mlp; and 2,000 colour JPEGs of 256×256, written to a temporary folder and decoded as they are read, as sets too
large to hold are, under that of a small DiT. For each:

    records/s     of the pipeline alone, nothing else running
    ms/step       of training in train.py's order: dispatch step n, wait for step n−1, ask for the next batch
    in next()     of that, spent asking for the batch. Step n is being computed meanwhile
    idle          of that, with nothing to compute: step n had ended by then. Where it ended while the batch was waited
                  for, all of the wait is counted, so this is an upper bound

On a CPU decoding takes from the step the cores that it computes on: compare ms/step with that of one batch over and
over (`no reading`). Records/s and idle of an accelerator's host want measuring there.
"""

import argparse
import contextlib
import datetime
import io
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.stream import Stream
from training.startup import start

READ = 1.5  # seconds of reading alone
WORKERS = (0, 1, 2, 4)


@dataclass(frozen=True)
class Waits:
    """Seconds of every step, of its call of next(), and of the part of that in which nothing was computed."""

    step: list[float]
    asked: list[float]
    idle: list[float]


def experiments() -> dict[str, Any]:
    from data.images import TFDS
    from experiments import mnist_mlp
    from losses.flow_matching import FlowMatching
    from models.denoiser import Denoiser
    from models.dit import DiT
    from paths.schedules import Rectified
    from training.experiment import Experiment

    net = DiT(width=128, depth=2, heads=4, patch=32, num_classes=10)
    jpegs = Experiment(
        data=TFDS(name="smooth_jpegs", test="train", flip=True),
        model=Denoiser(net=net, path=Rectified(), predicts="velocity"),
        loss=FlowMatching(label_dropout=0.1),
        steps=1000,
        batch_size=16,
    )
    return {"mnist": replace(mnist_mlp.experiment, batch_size=128), "256×256 JPEGs": jpegs}


def write(folder: str) -> str:
    """The JPEGs as a set that TFDS finds by its name; says how large they are."""
    import tensorflow_datasets as tfds

    from benchmarks.smooth_jpegs import COUNT, SmoothJpegs

    tfds.core.add_data_dir(folder)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        SmoothJpegs(data_dir=folder, file_format="array_record").download_and_prepare()
    size = sum(file.stat().st_size for file in Path(folder).rglob("*.array_record*"))
    return f"{COUNT} JPEGs of {size / COUNT / 1e3:.0f} kB"


def rate(stream: Stream) -> float:
    """Batches a second."""
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < READ:
        next(stream)
        count += 1
    return count / (time.perf_counter() - began)


def trained(plan: Any, state: Any, batches: Any, steps: int) -> tuple[Any, Waits]:
    """The state after so many steps and what they waited."""
    import jax

    found, metrics = Waits([], [], []), None
    for _ in range(steps):
        began = time.perf_counter()
        batch = next(batches)
        asked = time.perf_counter() - began
        ended = metrics is None or metrics["loss"].is_ready()
        state, following = plan.train_step(state, batch)
        if metrics is not None:
            jax.device_get(metrics)
        metrics = following
        found.step.append(time.perf_counter() - began)
        found.asked.append(asked)
        found.idle.append(asked if ended else 0.0)
    jax.block_until_ready(state)
    return state, Waits(*(values[3:] for values in (found.step, found.asked, found.idle)))


def row(name: str, reader: str, records: float | None, waits: Waits) -> str:
    total = sum(waits.step)
    shares = "".join(f"{100 * sum(part) / total:9.2f} %" for part in (waits.asked, waits.idle))
    told = f"{records:11,.0f}" if records is not None else 11 * " "
    return f"{name:14} {reader:11}{told}{1e3 * statistics.median(waits.step):10.1f}{shares}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    start()
    import jax

    from data import images
    from training.plan import Plan

    load, device = os.getloadavg()[0], jax.devices()[0]
    with tempfile.TemporaryDirectory() as folder:
        told = write(folder)
        print(
            f"{datetime.date.today()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {device.device_kind}"
        )
        print(f"{told}; load when it began {load:.1f}; of others, it takes from all of these\n")
        print(f"{'set':14} {'readers':11}{'records/s':>11}{'ms/step':>10}{'in next()':>11}{'idle':>11}")
        for name, experiment in experiments().items():
            images.IN_MEMORY = 2**30 if name == "mnist" else 0
            plan = Plan(experiment)
            state, size = plan.initial(), experiment.batch_size
            steps = options.steps * (2 if name == "mnist" else 1)
            state, alone = trained(plan, state, itertools.repeat(plan.batches[0]), steps)
            print(row(name, "no reading", None, alone), flush=True)
            for workers in WORKERS:
                threads = plan.batches.source.threads
                stream = Stream(plan.batches, workers=workers)
                for _ in range(8):  # until all have started
                    next(stream)
                records = size * rate(stream)
                state, waits = trained(plan, state, stream, steps)
                stream.close()
                reader = f"{workers} workers" if workers else f"{threads} threads" if threads else "in memory"
                print(row(name, reader, records, waits), flush=True)


if __name__ == "__main__":
    main()
