"""One run of several processes: how they find one another, who writes, and what they have to agree on.

Each process runs the same train.py on devices of its own; jax.distributed joins them, and a jitted step is then a
program of all. Where they would part ways (a folder that one cannot write, a checkpoint that one cannot read) they ask
one another first: a process that goes another way leaves the others waiting in a sum that it never joins.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from training.errors import Stopped, UserError, first_line

MESSAGE = 4096  # bytes of an error's message that one process tells the others


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the processes of a run meet. Left alone, it is looked for in the environment."""

    sought: bool = False  # jax is to find them, or say that it cannot
    coordinator: str = ""  # HOST:PORT of process 0
    processes: int = 0
    process: int = -1  # the number of this one

    def join(self) -> bool:
        """Joins the others, where there are any: before anything is computed. Whether it did.

        Raises:
          UserError: it is told in part only, or the others do not answer.
        """
        given = (bool(self.coordinator), self.processes > 0, self.process >= 0)
        if any(given) and not all(given):
            raise UserError(
                "--coordinator HOST:PORT, --processes N and --process I (0 to N - 1) go together; without them TPU "
                "pods, SLURM, Open MPI and Kubernetes are recognised by what they set"
            )
        if all(given) and self.process >= self.processes:
            raise UserError(f"--process {self.process}: of {self.processes} processes the last is {self.processes - 1}")
        if not any(given) and not self.sought and not expected(os.environ):
            return False
        told = {"coordinator_address": self.coordinator, "num_processes": self.processes, "process_id": self.process}
        try:
            jax.distributed.initialize(**(told if any(given) else {}))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes of this run did not meet: {first_line(error)}") from error
        if not writes():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, one process speaks for all; errors are each one's own
        return True


def expected(environment: Any) -> bool:
    """Whether a launcher has started this process as one of several, as far as its environment and its devices tell."""
    number = lambda name: int(value) if (value := environment.get(name, "")).isdecimal() else 1  # noqa: E731
    tasks = "SLURM_STEP_NODELIST" in environment and number("SLURM_NTASKS") > 1  # a step's: srun's, not sbatch's
    ranks = "OMPI_MCA_orte_hnp_uri" in environment and number("OMPI_COMM_WORLD_SIZE") > 1
    pod = bool(glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")) and find_spec("libtpu") is not None  # or one TPU host
    # A Job of several pods numbers them; jax asks Kubernetes for the rest (pip install 'jax[k8s]').
    pods = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return tasks or ranks or pod or pods or "JAX_COORDINATOR_ADDRESS" in environment


def writes() -> bool:
    """Whether this is the process that writes logs, pictures and summaries, and prints. Checkpoints are all's."""
    return jax.process_index() == 0


def once(action: Callable[[], Any]) -> None:
    """Has one process do it, while the others wait; what stops that one stops all.

    Raises:
      UserError, Stopped: as `action` raised there; an OSError becomes a UserError.
    """
    if jax.process_count() == 1:
        action()
        return
    failure: Exception | None = None
    if writes():
        try:
            action()
        except (UserError, Stopped, OSError) as error:
            failure = error
    text = str(failure or "").encode()[:MESSAGE]
    told = np.zeros(MESSAGE + 2, np.int32)
    told[0], told[1] = failure is not None, failure.code if isinstance(failure, Stopped) else 0
    told[2 : 2 + len(text)] = list(text)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    if not told[0]:
        return
    message = bytes(told[2:][told[2:] > 0].astype(np.uint8)).decode(errors="replace")
    raise Stopped(message, int(told[1])) if told[1] else UserError(message)


def agreed(mine: bool) -> bool:
    """Whether it is so in every process."""
    return mine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def on_host(leaf: Any) -> np.ndarray:
    """All of an array, wherever its parts are; every process asks for it at once."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def preempted(step: int) -> bool:
    """Whether some process has been told to go (SIGTERM), and this is the step after which all of them save.

    Called at every step by all: they agree on one that none of them has passed.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
