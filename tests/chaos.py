"""Chaos: random faults over a training run, and what is left of it: `python -m tests.chaos --faults 30 --seed 0`.

A run of one process with a data worker, in a folder on a small file system of its own where the system lets us mount
one, and a run of two processes ("hosts") on loopback. Faults:

    kill        SIGKILL
    term        SIGTERM: exit status 143, the step under way saved
    disk        the file system is full: the run stops, what is saved stays intact
    truncate    SIGKILL, and half of the newest checkpoint's largest file is lost
    worker      the data worker is killed: it is reported, and the run goes on
    host        one of the two hosts is killed: the other ends too, and does not hang
    notice      one of the two hosts is told to go (SIGTERM): both save the same step

After each the same command resumes. At the end each run has the bits of one that was never disturbed, and no checkpoint
was lost that the run had not itself replaced.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.scripts import start

EVERY = 20  # steps between checkpoints
STRIDE = 45  # steps between faults, at most
SIZE = 96  # MiB of the small file system
# What gloo says where one of two processes has compiled for 30 s longer than the other, as on a busy machine.
WAITED_IN_VAIN = "Gloo context initialization failed"
ALONE = ("kill", "term", "disk", "truncate", "worker")
TWO = ("host", "notice")
TINY = (
    *("digits_ddpm", "--tiny", "--sample-every", "0", "--log-every", "1", "--metrics.0.samples", "16"),
    *("--checkpoints.every", str(EVERY), "--checkpoints.latest", "3"),
)


@dataclass
class Tally:
    """What the faults came to."""

    faults: Counter[str] = field(default_factory=Counter)
    lost: dict[str, int] = field(default_factory=dict)  # most steps that had to be taken again, by fault
    equal: dict[str, bool] = field(default_factory=dict)  # whether a run ended in the bits of an undisturbed one
    small_disk: bool = False

    def add(self, fault: str, lost: int) -> None:
        self.faults[fault] += 1
        self.lost[fault] = max(self.lost.get(fault, 0), lost)

    def lines(self) -> list[str]:
        rows = [f"{fault:10}{count:4}   {self.lost[fault]:5}" for fault, count in sorted(self.faults.items())]
        full = "a small file system" if self.small_disk else "a limit on the size of files: nothing could be mounted"
        ends = [
            f"{run}: {'bit-equal to' if equal else 'NOT EQUAL to'} the undisturbed" for run, equal in self.equal.items()
        ]
        return [f"{'fault':10}{'n':>4}   most steps taken again", *rows, f"disk full by {full}", *ends]


class Run:
    """One run under test, of one process or of two hosts."""

    def __init__(self, folder: Path, steps: int, hosts: int, workers: int) -> None:
        self.folder, self.steps, self.hosts = folder, steps, hosts
        self.arguments = (*TINY, "--steps", str(steps), "--workers", str(workers), "--workdir", str(folder))

    def start(self, limit: int = 0) -> list[subprocess.Popen[str]]:
        """Args: limit, of the size of files in bytes; 0 is none."""
        if self.hosts == 1:
            return [start("train.py", *self.arguments, limit=limit)]
        port = free_port()
        where = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(self.hosts))
        return [start("train.py", *self.arguments, *where, "--process", str(i)) for i in range(self.hosts)]

    def step(self) -> int:
        """The last step that is logged."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError):
                continue  # half a line
        return 0

    def checkpoints(self) -> set[int]:
        folder = self.folder / "checkpoints"
        return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()} if folder.is_dir() else set()

    def wait_for(self, step: int, processes: list[subprocess.Popen[str]]) -> bool:
        """Whether the run got there before it ended."""
        return self._wait(lambda: self.step() >= step, processes)

    def wait_for_checkpoints(self, count: int, processes: list[subprocess.Popen[str]]) -> bool:
        """Whether the run had so many before it ended."""
        return self._wait(lambda: len(self.checkpoints()) >= count, processes)

    def _wait(self, is_so: Callable[[], bool], processes: list[subprocess.Popen[str]], timeout: float = 120.0) -> bool:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if is_so():
                return True
            if any(process.poll() is not None for process in processes):
                return is_so()
            time.sleep(0.02)
        raise AssertionError(f"the run stands at step {self.step()} with the checkpoints {sorted(self.checkpoints())}")

    def digest(self) -> str:
        return json.loads((self.folder / "summary.json").read_text())["state_digest"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ended(processes: list[subprocess.Popen[str]], timeout: float = 150.0) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each; none may hang."""
    found = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise AssertionError("a process hangs") from None
        found.append((process.returncode, out, err))
    return found


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Its data workers, which any of its threads may have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def kill(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    processes[0].kill()
    [(code, _, _)] = ended(processes)
    assert code == -signal.SIGKILL


def term(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    processes[0].terminate()
    [(code, _, err)] = ended(processes)
    assert code == 143, (code, err)
    assert "SIGTERM: saved step" in err, err


def truncate(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    kill(run, processes)
    newest = run.folder / "checkpoints" / str(max(run.checkpoints()))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def worker(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    at = run.step()
    [victim, *_] = workers_of(processes[0])
    os.kill(victim, signal.SIGKILL)
    run.wait_for(at + 10, processes)
    processes[0].terminate()
    [(code, out, err)] = ended(processes)
    assert code == 143, (code, err)
    assert "a data worker died" in out + err, out + err


def disk(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    """Fills the file system; where it is not a small one, the process has been started with a limit."""
    filler = run.folder.parent / "filler"
    if os.path.ismount(run.folder.parent):
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    [(code, _, err)] = ended(processes)
    filler.unlink(missing_ok=True)
    assert code == 1, (code, err)
    assert "could not be written (" in err, err
    assert "intact" in err or "no checkpoint had been written before" in err, err
    assert "Traceback" not in err, err


def host(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    victim = random.randrange(run.hosts)
    processes[victim].kill()
    codes = [code for code, _, _ in ended(processes)]
    assert codes[victim] == -signal.SIGKILL
    assert all(code != 0 for code in codes), codes


def notice(run: Run, processes: list[subprocess.Popen[str]]) -> None:
    processes[random.randrange(run.hosts)].terminate()
    found = ended(processes)
    assert [code for code, _, _ in found] == [143] * run.hosts, found
    assert all("saved step" in err for _, _, err in found), found


ACTIONS: dict[str, Callable[[Run, list[subprocess.Popen[str]]], None]] = {
    "kill": kill,
    "term": term,
    "truncate": truncate,
    "worker": worker,
    "disk": disk,
    "host": host,
    "notice": notice,
}


def strike(run: Run, fault: str, at: int, tally: Tally) -> None:
    """Starts or resumes the run, strikes when it has got to a step, and looks at what is left."""
    small = os.path.ismount(run.folder.parent)
    processes = run.start(limit=60_000 if fault == "disk" and not small else 0)
    before = run.checkpoints()
    try:
        if fault == "disk" and not small:
            disk(run, processes)
        else:
            # Two checkpoints are there: one to be lost, and one to go on from.
            while not (run.wait_for(at, processes) and run.wait_for_checkpoints(2, processes)):
                found = ended(processes)
                assert any(WAITED_IN_VAIN in err for _, _, err in found), found
                processes = run.start()
            before = run.checkpoints()
            ACTIONS[fault](run, processes)
    finally:
        for process in processes:
            process.kill()
    reached, after = run.step(), run.checkpoints()
    newest = max(after, default=0)
    if fault == "truncate":
        newest = max(after - {newest}, default=0)
    replaced = {step for step in before if len([later for later in after if later > step]) >= 3}
    assert before - replaced <= after, f"{fault}: of the checkpoints {sorted(before)} there are {sorted(after)}"
    tally.add(fault, max(reached - newest, 0))


def finish(run: Run) -> str:
    """Runs to the end; what it printed."""
    found = ended(run.start(), timeout=1200.0)
    while any(WAITED_IN_VAIN in err for _, _, err in found):
        found = ended(run.start(), timeout=1200.0)
    assert all(code == 0 for code, _, _ in found), found
    return found[0][1]


def disturbed(run: Run, faults: list[str], reference: Path, tally: Tally, seed: int) -> None:
    """A run with faults, against one without in `reference`."""
    chance = random.Random(seed)
    for fault in faults:
        strike(run, fault, run.step() + chance.randint(5, STRIDE), tally)
        print(f"step {run.step():5} of {run.steps}: {fault}", flush=True)
    out = finish(run)
    assert f"resumed {run.folder} at step" in out, out
    if faults[-1] == "truncate":
        assert "cannot be read" in out, out
    whole = Run(reference, run.steps, run.hosts, 0)
    finish(whole)
    name = f"{run.hosts} process{'es' if run.hosts > 1 else ''}, {len(faults)} faults, {run.steps} steps"
    tally.equal[name] = run.digest() == whole.digest()
    print(f"{name}: {'bit-equal' if tally.equal[name] else 'NOT EQUAL'}", flush=True)


def chaos(folder: Path, alone: list[str], two: list[str], seed: int = 0) -> Tally:
    """All of it, in an empty folder."""
    tally, disk_folder = Tally(), folder / "small"
    disk_folder.mkdir()
    tally.small_disk = os.path.ismount(disk_folder) or mounted(disk_folder)
    random.seed(seed)
    try:
        for name, faults, hosts in (("alone", alone, 1), ("two", two, 2)):
            if faults:
                place = disk_folder if hosts == 1 else folder
                # Further than faults get on a slow machine: checkpoints are written while steps are taken.
                run = Run(place / name, 100 + 150 * len(faults), hosts, workers=int(hosts == 1))
                disturbed(run, faults, folder / f"{name}_undisturbed", tally, seed)
    finally:
        if tally.small_disk:
            subprocess.run(["umount", "-l", str(disk_folder)], check=False)
    return tally


def mounted(folder: Path) -> bool:
    """Mounts a small file system there, if this is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(folder)]
    return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kinds = [chance.choice((*ALONE, *TWO)) for _ in range(options.faults)]
    for i, kind in enumerate((*ALONE, *TWO)[: options.faults]):  # each of them once at least
        kinds[i] = kind
    chance.shuffle(kinds)
    folder = Path(tempfile.mkdtemp(prefix="chaos"))
    try:
        tally = chaos(folder, [k for k in kinds if k in ALONE], [k for k in kinds if k in TWO], options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(tally.lines()))
    sys.exit(0 if all(tally.equal.values()) else 1)


if __name__ == "__main__":
    main()
