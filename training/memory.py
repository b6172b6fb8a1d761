"""How much memory a training step needs under each checkpointing policy, before anything runs.

    (1)  peak = arguments + results − what the results take over from donated arguments + temporary
    (2)  cost = FLOPs of all matrix products and convolutions in the traced step                     training/flops.py

(1) is a device's, as the compiler has planned it: its buffers are assigned when a program is compiled, and nothing else
is allocated while it runs. (2) is counted in the trace, where loops tell their length: the compiler's own
`cost_analysis()` counts a loop's body once.

The state (parameters, their average, the optimiser's) and the batch are among the arguments. Not counted: what the
framework itself takes, a second batch on its way to the device, and drawing samples.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from training import config
from training.errors import UserError
from training.experiment import Experiment
from training.flops import matmul_flops
from training.mesh import batch_parts, bytes_a_device
from training.plan import Plan

# From what is kept to what is computed again; a tie in cost goes to the first.
CANDIDATES = (
    "none",
    "dots",
    "reversible",
    "sqrt",
    "full",
    "group(2)",
    "group(4)",
    "nested(2)",
    "nested",
    "binomial(4)",
)
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
CLOSE = 32  # the largest batch is found to one part in so many
TRIES = 16
GROWTH = 8  # from a batch that fits to the next that is tried, at most


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one policy takes; bytes are a device's."""

    remat: str
    batch_size: int
    peak: int  # eq. (1)
    temporary: int
    flops: int  # eq. (2), of all devices


def parse_size(text: str) -> int:
    """Bytes of `12GiB`, `800MB` or `1e9`.

    Raises:
      UserError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?) *([kmgt]i?)?b?", text.strip().lower())
    size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if not size:
        raise UserError(f"--memory-limit {text}: say a size such as 12GiB, 800MB or 1e9")
    return size


def shown(size: float | int) -> str:
    """Bytes as `3.1 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def available() -> tuple[int, str]:
    """Bytes that each device has for a program, and who says so."""
    device = jax.local_devices()[0]
    told = device.memory_stats() or {}
    if "bytes_limit" in told:
        return told["bytes_limit"] - told.get("bytes_in_use", 0), f"what {device.device_kind} has free"
    free = re.search(r"MemAvailable:\s+(\d+) kB", _read(Path("/proc/meminfo")))
    if not free:
        raise UserError("this device does not say how much memory it has: name it with --memory-limit")
    return int(free[1]) * 1024 // jax.local_device_count(), "what the machine has free"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class Planner:
    """Needs of an experiment's step, each compiled once; nothing is run.

    Raises:
      UserError: a setting is wrong, whatever the policy.
    """

    def __init__(self, experiment: Experiment, cache: Path | None = None) -> None:
        self.experiment = experiment
        self.cache = cache
        self._plans: dict[Any, Any] = {}
        base = Plan(replace(experiment, remat="none"))
        self.devices = base.mesh.size
        # A batch is a multiple of this, and at most the whole of the data.
        self.unit = math.lcm(batch_parts(base.mesh) * experiment.accumulate, getattr(experiment.data, "each", 1))
        self.examples = len(base.batches.source)
        self.state = bytes_a_device(base.state_like)

    def need(self, remat: str, batch_size: int | None = None) -> Need:
        """Of one policy.

        Raises:
          UserError: the model cannot be differentiated by it: bijections' policies, or a reversal that has no forward
            mode (models/revolve.py).
        """
        size = batch_size or self.experiment.batch_size
        traced = self._traced(replace(self.experiment, remat=remat, batch_size=size))
        peak, temporary = self._compiled(traced.lower())
        return Need(remat=remat, batch_size=size, peak=peak, temporary=temporary, flops=matmul_flops(traced.jaxpr))

    def table(self) -> list[Need]:
        """Every policy that the model has, the least recomputation first."""
        return list(self._by_cost())

    def choose(self, limit: int) -> Need:
        """The policy with the least recomputation whose peak is within the limit.

        Raises:
          UserError: none fits; says what is missing.
        """
        needs = []
        for need in self._by_cost():
            if need.peak <= limit:
                return need
            needs.append(need)
        least = min(needs, key=lambda need: need.peak)
        raise UserError(
            f"no policy fits into {shown(limit)}: {least.remat}, which needs the least, takes {shown(least.peak)}, "
            f"{shown(least.peak - limit)} too much. {shown(self.state)} of it are parameters, their average and the "
            f"optimiser's state; the rest falls with --batch-size, now {least.batch_size}, or --accumulate"
        )

    def largest_batch(self, remat: str, limit: int) -> int:
        """The largest batch whose step is within the limit, to one part in 32; 0 if none is.

        What is answered has been compiled, and fits. Between what fits and what fails the line through the two and
        their middle are tried in turn: the need is flat where the state is most of it.

        Raises:
          UserError: see `need`.
        """
        whole = lambda size: max(size // self.unit, 1) * self.unit  # noqa: E731
        fits, fails = (0, self.state), (0, 0)  # (batch, peak)
        most, size = whole(self.examples), min(whole(self.experiment.batch_size), whole(self.examples))
        for attempt in range(TRIES):
            need = self.need(remat, size)
            if need.peak <= limit:
                fits = (size, need.peak)
            else:
                fails = (size, need.peak)
            near = whole(fits[0] // CLOSE)
            if fits[0] == most or (fails[0] and fails[0] - fits[0] <= near):
                break
            if not fails[0]:
                size = min(GROWTH * size, most)
            elif attempt % 2:
                size = whole((fits[0] + fails[0]) // 2)
            else:
                slope = (fails[1] - fits[1]) / (fails[0] - fits[0])
                guess = fits[0] + int((limit - fits[1]) / max(slope, 1.0))
                size = min(max(whole(guess), fits[0] + near), fails[0] - self.unit)
        return fits[0]

    def _by_cost(self) -> Iterator[Need]:
        """Compiles them one by one, the cheapest first; which is cheap their traces tell."""
        costs = {}
        for remat in CANDIDATES:
            try:
                costs[remat] = matmul_flops(self._traced(replace(self.experiment, remat=remat)).jaxpr)
            except UserError:
                if remat == "none":
                    raise
        yield from map(self.need, sorted(costs, key=lambda remat: costs[remat]))

    def _traced(self, experiment: Experiment) -> Any:
        key = (experiment.remat, experiment.batch_size)
        if key not in self._plans:
            plan = Plan(experiment)
            self._plans[key] = plan.train_step.trace(plan.state_like, plan.batch_like)
        return self._plans[key]

    def _compiled(self, lowered: Any) -> tuple[int, int]:
        """Peak and temporary bytes; remembered by the program itself, the device and the compiler."""
        file = None
        if self.cache is not None:
            device = jax.devices()[0]
            about = (
                lowered.as_text(),
                device.device_kind,
                self.devices,
                jax.__version__,
                version("jaxlib"),
                device.client.platform_version,
                os.environ.get("XLA_FLAGS"),
            )
            file = self.cache / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.json"
            if file.exists():
                found = json.loads(file.read_text())
                return found["peak"], found["temporary"]
        memory: Any = lowered.compile().memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        found = {"peak": memory.argument_size_in_bytes + results + memory.temp_size_in_bytes}
        found["temporary"] = memory.temp_size_in_bytes
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            config.write_whole(file, json.dumps(found))
        return found["peak"], found["temporary"]
