"""One run on meshes of 1 to 8 virtual devices: `python benchmarks/scaling.py [NAME …]`.

Of each experiment's tiny form, batch 16: the losses of 20 steps against those of one device, what one device holds of
parameters, average and optimiser state, and what a step communicates (benchmarks/collectives.py). Correctness and
bytes, not speed: virtual devices share the cores of one machine.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import numpy as np

from benchmarks.collectives import KINDS, communicated
from tests.families import FAMILIES, family, run
from training.mesh import Mesh, bytes_a_device
from training.plan import Plan
from training.startup import start

MESHES = (
    *(Mesh(data=n) for n in (1, 2, 4, 8)),
    *(Mesh(fsdp=n, fsdp_from=64) for n in (2, 4, 8)),
    Mesh(data=2, fsdp=2, model=2, fsdp_from=64),
)


def kib(size: float) -> str:
    return f"{size / 1024:.1f}"


def main() -> None:
    start()
    names = sys.argv[1:] or FAMILIES
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}; KiB a device")
    print(f"{'':26}{'data fsdp model':>16}{'losses differ':>15}{'state':>9}  communicated in a step")
    for name in names:
        reference = None
        for mesh in MESHES:
            plan = Plan(family(name, mesh))
            state, losses = run(plan)
            reference = losses if reference is None else reference
            differ = float(np.max(np.abs(losses / reference - 1.0)))
            moved = communicated(plan.train_step.lower(plan.state_like, plan.batch_like).compile().as_text())
            parts = [f"{kind} {moved.count[kind]}: {kib(moved.bytes[kind])}" for kind in KINDS if moved.count[kind]]
            shape = " ".join(f"{plan.mesh.shape[axis]:4}" for axis in ("data", "fsdp", "model"))
            print(f"{name:26}{shape:>16}{differ:15.1e}{kib(bytes_a_device(state)):>9}  {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
