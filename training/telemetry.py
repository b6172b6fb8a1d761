"""What a device tells: the memory in use, how much of its peak rate the model's own work makes, a trace of some steps.

    (1)  utilisation = FLOPs of a step · steps a second / (peak of a device · devices)         2204.02311, appendix B

FLOPs are the model's (training/flops.py): what checkpointing computes once more is no useful work. The peak is the
vendor's, of dense matrix products in the run's precision, which no program reaches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from training.errors import UserError
from training.experiment import without_remat
from training.flops import matmul_flops
from training.plan import Plan

GIB = 2**30
# 10¹² operations a second, from vendors' data sheets, without sparsity: (bfloat16, float16, float32); None: it has no
# units for it. float32 is TF32 where a card has that, and a TPU's bfloat16: what XLA makes of float32 by default.
# The first row whose name is part of the device's kind counts. A TPU v2 or v3 is two devices, half a chip each.
PEAKS: tuple[tuple[str, tuple[float | None, float | None, float | None]], ...] = (
    (" mig ", (None, None, None)),  # a part of a card
    ("h100 pcie", (756.0, 756.0, 378.0)),
    ("h100 nvl", (835.5, 835.5, 417.8)),
    ("h200 nvl", (835.5, 835.5, 417.8)),
    ("h100", (989.4, 989.4, 494.7)),
    ("h200", (989.4, 989.4, 494.7)),
    ("nvidia a100", (312.0, 312.0, 156.0)),
    ("a100-", (312.0, 312.0, 156.0)),
    ("v100s", (None, 130.0, 16.4)),
    ("v100-pcie", (None, 112.0, 14.0)),
    ("v100", (None, 125.0, 15.7)),
    ("l40s", (362.0, 362.0, 183.0)),
    ("l40", (181.0, 181.0, 90.5)),
    ("nvidia l4", (121.0, 121.0, 60.5)),
    ("tesla t4", (None, 65.0, 8.1)),
    ("4090 laptop", (None, None, None)),
    ("4090 d", (None, None, None)),
    ("rtx 4090", (165.2, 165.2, 82.6)),
    ("tpu v2", (22.5, None, 22.5)),
    ("tpu v3", (61.5, None, 61.5)),
    ("tpu v4 lite", (138.0, None, 138.0)),
    ("tpu v4", (275.0, None, 275.0)),
    ("tpu v5 lite", (197.0, None, 197.0)),
    ("tpu v5e", (197.0, None, 197.0)),
    ("tpu v5", (459.0, None, 459.0)),
    ("tpu v6 lite", (918.0, None, 918.0)),
    ("tpu v6e", (918.0, None, 918.0)),
)
PRECISIONS = ("bfloat16", "float16", "float32")


def device_memory(device: Any) -> dict[str, float]:
    """GiB in use on a device, and the most that was; nothing where it does not tell, as a CPU. Waits for nothing."""
    stats = device.memory_stats() or {}
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {name: stats[key] / GIB for name, key in names.items() if key in stats}


def peak_flops(device_kind: str, precision: str) -> float | None:
    """A device's peak in operations a second; None where the table does not have it.

    Args:
      device_kind: as jax tells it, such as `NVIDIA H100 80GB HBM3`.
      precision: of `Experiment`.
    """
    for part, peaks in PEAKS:
        if part in device_kind.lower():
            peak = peaks[PRECISIONS.index(precision)]
            return None if peak is None else peak * 1e12
    return None


def utilisation(flops: int, steps_per_second: float, peak: float, devices: int) -> float:
    """(1)."""
    return flops * steps_per_second / (peak * devices)


def model_flops(plan: Plan) -> int:
    """Operations of one train step, over all devices, nothing computed twice. Traces the step."""
    step = plan.step_of(without_remat(plan.model))
    return matmul_flops(step, plan.state_like, plan.batch_like)


def told_by(plan: Plan, device: Any = None) -> Callable[[dict[str, float]], dict[str, float]]:
    """What the device adds to a row of the log. Only where its peak is known is the step traced for it.

    Args:
      device: one that stands for all; by default this process's first in the mesh.
    """
    device = device or plan.mesh.local_devices[0]
    peak = peak_flops(device.device_kind, plan.experiment.precision)
    flops = 0 if peak is None else model_flops(plan)

    def add(row: dict[str, float]) -> dict[str, float]:
        told = device_memory(device)
        if peak is not None:
            told["utilisation"] = utilisation(flops, row["steps_per_second"], peak, plan.mesh.size)
        return told

    return add


def parse_profile(text: str) -> tuple[int, int]:
    """`10:20` as (10, 20).

    Raises:
      UserError: it is not two steps, the first at least 1 and at most the second.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise UserError(
            f"--profile {text}: name the first and the last step to trace, such as 10:20, 0 < first <= last"
        )
    return int(first), int(last)


class Profile:
    """A trace of some steps by jax's profiler, for TensorBoard or Perfetto, in `folder`."""

    def __init__(self, folder: Path, span: tuple[int, int] | None, taken: int) -> None:
        """Args: span, the first and the last step to trace; taken, the steps that were taken before."""
        self.folder, self.running = folder, False
        first, self.last = span or (0, 0)
        self.first = max(first, taken + 1)
        if span and self.first > self.last:
            print(f"nothing is profiled: step {self.last} has been taken before", flush=True)

    def before(self, step: int, finish: Callable[[], None]) -> None:
        """Begins the trace where it is due; `finish` waits for what is on the device."""
        if step == self.first <= self.last:
            finish()
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after(self, step: int, finish: Callable[[], None]) -> None:
        """Ends the trace where it is due, when that step is done."""
        if self.running and step == self.last:
            finish()
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way: a run may stop before its last step."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            print(f"profile: {self.folder}", flush=True)
