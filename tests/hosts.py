"""One of two processes that run every family on one mesh: `python -m tests.hosts OUT NAME …`, started by test_hosts.py.

The processes find one another as those of a SLURM step do. The first writes the losses, and the digest of the first
family's state, of which both save a checkpoint.
"""

import json
import sys
from pathlib import Path

from tests.families import family, run
from training.checkpoint import Store
from training.distributed import Cluster, writes
from training.mesh import Mesh
from training.plan import Plan
from training.state import state_digest


def main() -> None:
    out, names = Path(sys.argv[1]), sys.argv[2:]
    assert Cluster().join()
    mesh, found = Mesh(data=2, fsdp=2, fsdp_from=64), {}
    for name in names:
        state, losses = run(Plan(family(name, mesh)))
        found[name] = losses.tolist()
        if name == names[0]:
            store = Store(out, family(name, mesh).checkpoints)
            store.save(state, {"loss": 0.5})
            store.wait()
            store.close()
            found["digest"] = state_digest(state)
    if writes():
        (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
