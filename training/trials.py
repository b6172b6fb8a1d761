"""`train.py EXPERIMENT --sweep FILE`: the experiment once for every element of the list `sweep` in the user's file.

read and check every element → leave out what is finished → a process of train.py for each other one, `--at-once` at a
time → a table, printed and as sweep.csv. The processes hold the devices; this one never asks jax for any.

The sweep's folder holds those of its runs and, beside each, what it said in NAME.log. Runs outlive a sweep that is
killed: one that another process still trains is found out before anything is begun (training/lock.py).
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import config
from training.cli import load_experiment, parse, take
from training.errors import Stopped, UserError
from training.experiment import FREE, Experiment
from training.fit import take_wishes
from training.lock import locked
from training.run import Run
from training.stopping import EXIT_STATUS
from training.sweep import Element, Outcome, aligned, arguments, as_csv, load, names, one_line, slots, table

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
ALONE = ("--profile", "--plan-memory", "--replay", "--distributed", "--coordinator", "--processes", "--process")
ENDED_BY_SIGNAL = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit statuses of a run that is not finished


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    folder: Path
    label: str  # in what is printed
    command: list[str]
    experiment: Experiment
    left_open: tuple[str, ...]  # settings that the run chooses itself, by the memory there is

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def summary(self) -> dict[str, Any] | None:
        """What the run ended with; None before it has."""
        try:
            found = config.read_json(self.folder / "summary.json")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run that is finished; None where it is to be begun or resumed.

        Raises:
          UserError: the folder holds a run with other settings, which train.py would refuse.
        """
        if not (self.folder / "config.json").exists():
            return None
        Run(self.folder).check_same(self.experiment.pinned(), (*FREE, *self.left_open))
        return self.summary()


def sweep(name: str, file: str, given: list[str], settings: list[str]) -> None:
    """Trains every run that is not finished; prints the table and writes it.

    Args:
      name: of the experiment.
      file: where the sweep is defined.
      given: the whole command line after the name.
      settings: what train.py has left of it, its own flags taken.

    Raises:
      UserError: anything is wrong with any of the runs; none has been trained.
      Stopped: a signal asked for it, or some run is not finished.
    """
    passed = list(given)
    take(passed, "--sweep", has_value=True)
    at_once = take(passed, "--at-once", has_value=True) or "1"
    take(settings, "--at-once", has_value=True)
    if not at_once.isdecimal() or int(at_once) < 1:
        raise UserError(f"--at-once {at_once}: name how many runs to train at a time, at least 1")
    environments = slots(int(at_once), os.environ, gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))))
    for flag in ALONE:
        if any(word.partition("=")[0] == flag for word in passed):
            raise UserError(f"{flag} is for a single run and does not go with --sweep")
    folder = take(passed, "--workdir", has_value=True)
    tiny, restart, preset = "--tiny" in passed, "--restart" in passed, take(list(passed), "--preset", has_value=True)
    form = "_tiny" if tiny else f"_{preset}" if preset else ""
    workdir = Path(folder or Path("runs") / f"{Path(name).stem}{form}_sweep")

    default, elements, trials = load_experiment(name, tiny, preset), load(file), list[Trial]()
    wishes = take_wishes(list(passed))
    left_open = tuple(field for field in ("remat", "batch_size") if getattr(wishes, field))
    for i, (element, called) in enumerate(zip(elements, names(elements), strict=True)):
        words, where = arguments(element), workdir / called
        try:
            experiment = _checked(default, [*settings, *words], name, element, left_open)
        except UserError as error:
            raise UserError(f"{file}: sweep[{i}] = {element}: {error}") from error
        command = [sys.executable, str(TRAIN), name, *passed, *words, "--workdir", str(where)]
        label = f"[{i + 1}/{len(elements)}] {called}"
        trials.append(Trial(folder=where, label=label, command=command, experiment=experiment, left_open=left_open))
    before = {trial.folder: summary for trial in trials if not restart and (summary := trial.finished())}

    workdir.mkdir(parents=True, exist_ok=True)
    todo = [trial for trial in trials if trial.folder not in before]
    for trial in todo:
        if trial.folder.is_dir():
            with locked(trial.folder):
                pass
    already = f", {len(before)} of them finished before" if before else ""
    print(f"{len(trials)} runs of {name} in {workdir}{already}", flush=True)
    outcomes = {folder: Outcome(status="finished", summary=summary) for folder, summary in before.items()}
    caught = _train(todo, environments, restart, outcomes)

    heads, *rows = table(elements, [outcomes.get(trial.folder, Outcome()) for trial in trials])
    with_folder = [["run", *heads], *([trial.folder.name, *row] for trial, row in zip(trials, rows, strict=True))]
    config.write_whole(workdir / "sweep.csv", as_csv(with_folder))
    print(f"{aligned([heads, *rows])}\ntable: {workdir / 'sweep.csv'}", flush=True)
    finished = sum(outcome.status == "finished" for outcome in outcomes.values())
    if finished < len(trials):
        goes_on = f"the same command{' without --restart' if restart else ''} goes on"
        said = f"{finished} of {len(trials)} runs are finished; {goes_on}"
        if caught:
            raise Stopped(f"{caught[0].name}: {said}", EXIT_STATUS[caught[0]])
        raise Stopped(f"{said}; what they said is in {workdir}/*.log", 1)


def _checked(
    default: Experiment, words: list[str], name: str, element: Element, left_open: tuple[str, ...]
) -> Experiment:
    """The experiment of one run.

    Raises:
      UserError: in one line, what is wrong with its settings.
    """
    both = [key for key in element if key.replace("-", "_") in left_open]
    if both:
        raise UserError(f"{both[0]} is left to be chosen by `auto`")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(default, words, f"train.py {name}")
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(one_line(said.getvalue())) from None


@dataclass(frozen=True, kw_only=True)
class _Running:
    trial: Trial
    process: subprocess.Popen[bytes]
    began: float
    end_of_log: int  # before the run said anything


def _train(
    todo: list[Trial], environments: list[dict[str, str]], restart: bool, outcomes: dict[Path, Outcome]
) -> list[signal.Signals]:
    """Runs each trial as a process, one in each slot, until all have ended or a signal came. Returns the signals."""
    caught: list[signal.Signals] = []
    previous = {number: signal.signal(number, lambda n, _: caught.append(signal.Signals(n))) for number in EXIT_STATUS}
    waiting, running, passed_on = list(todo), dict[int, _Running](), 0
    try:
        while running or (waiting and not caught):
            for slot, environment in enumerate(environments):
                if slot not in running and waiting and not caught:
                    running[slot] = _begin(waiting.pop(0), environment, restart)
            for number in caught[passed_on:]:
                for run in running.values():
                    run.process.kill() if passed_on else run.process.send_signal(number)
                passed_on += 1
            for slot, run in list(running.items()):
                if run.process.poll() is not None:
                    outcomes[run.trial.folder] = _end(running.pop(slot), killed=passed_on > 1)
            time.sleep(0.05)
    finally:
        for run in running.values():  # none is left, unless this process has failed
            run.process.terminate()
        for run in running.values():
            run.process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return caught


def _begin(trial: Trial, environment: dict[str, str], restart: bool) -> _Running:
    with trial.log.open("ab") as log:
        if restart:
            log.truncate(0)
        end_of_log = log.seek(0, os.SEEK_END)
        print(f"{trial.label}: started", flush=True)
        process = subprocess.Popen(
            trial.command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # a terminal's Ctrl-C reaches the sweep alone, which passes it on
        )
    return _Running(trial=trial, process=process, began=time.perf_counter(), end_of_log=end_of_log)


def _end(run: _Running, killed: bool) -> Outcome:
    code, took, summary = run.process.returncode, time.perf_counter() - run.began, run.trial.summary()
    if code == 0 and summary is not None:
        loss = f", loss {summary['loss']:.4g}" if isinstance(summary.get("loss"), float) else ""
        print(f"{run.trial.label}: finished in {took:.1f} s{loss}", flush=True)
        return Outcome(status="finished", summary=summary)
    lines = run.trial.log.read_bytes()[run.end_of_log :].decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    status = "stopped" if killed or code in ENDED_BY_SIGNAL else f"failed ({code})"
    print(f"{run.trial.label}: {status} after {took:.1f} s: {last}", flush=True)
    return Outcome(status=status)
