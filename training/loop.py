"""One training loop for every experiment.

read the experiment → eval_shape the step and the sampler (a wrong setting fails here) → hold the run's folder → restore
or initialise → make the records that are made and not read → for each batch: dispatch step n, log step n−1 → save state
and data position together → finish with summary.json.
"""

import math
import time
from pathlib import Path
from typing import Any

import jax

from data.dataset import ReadError
from data.stream import Stream
from metrics.features import PIXELS
from training.checkpoint import Store
from training.distributed import once, writes
from training.errors import Stopped, UserError
from training.experiment import Experiment
from training.flight import Flight
from training.handover import check_folder
from training.log import Log
from training.measure import draw_picture, measure
from training.memory import shown
from training.mesh import bytes_a_device, put_batch
from training.plan import Plan
from training.run import Run
from training.saving import Saver
from training.state import TrainState, state_digest
from training.stopping import Stopping
from training.telemetry import Profile, told_by
from training.watchdog import Watchdog


def train(
    experiment: Experiment, folder: Path, restart: bool = False, profile: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Trains to the last step, or resumes a run that was cut short. Returns the summary.

    Args:
      profile: the first and the last step of which the profiler's trace goes to `folder`/profile.

    Raises:
      UserError: a setting is wrong, the folder holds a run with other settings, or another process trains in it;
        nothing has been computed.
      Stopped: a signal asked for it, the loss is not finite, the data cannot be read, or a file cannot be written.
    """
    began = time.perf_counter()
    experiment = experiment.pinned()
    if profile and profile[0] > experiment.steps:
        raise UserError(f"step {profile[0]} cannot be profiled: the run has {experiment.steps}")
    plan = Plan(experiment)
    check_folder(experiment, folder)
    run = Run(folder)
    with run.held():
        once(lambda: run.open(experiment, restart))
        again = f"the same command{' without --restart' if restart else ''}"
        return _train(plan, run, profile, began, again)


def _begun(plan: Plan, run: Run, store: Store) -> tuple[TrainState, dict[str, Any], bool]:
    """The state to go on from, what the run has reached, and whether it has been begun before; says so."""
    experiment, folder = plan.experiment, run.folder
    restored = store.restore(plan.state_like)
    state, progress = restored or (plan.initial(), {"seconds": 0.0, "loss": math.nan})
    first = int(state.step)
    if writes():
        run.forget_after(first)
    if restored and first == experiment.steps:
        print(f"{folder} is finished; measuring it again (--restart trains anew)", flush=True)
    elif first:
        print(f"resumed {folder} at step {first} of {experiment.steps}", flush=True)
    if first < experiment.steps and writes():
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        examples = f"{len(plan.batches.source):,} examples"
        if len(plan.batches.source) < experiment.batch_size:
            examples += f" (fewer than a batch of {experiment.batch_size}, which repeats them)"
        size = f"an epoch of {examples}, {parameters:,} parameters"
        print(f"{folder}: {size}; the first step is being compiled", flush=True)
    if plan.mesh.size > 1:
        shape = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
        held, whole = bytes_a_device(state), sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        print(f"{plan.mesh.size} devices ({shape}) hold {shown(held)} of the state's {shown(whole)} each", flush=True)
    return state, progress, restored is not None


def _same_data(plan: Plan, folder: Path, progress: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the data, by which a run that is resumed is held to it.

    Raises:
      UserError: it is not the data that the run has been trained on so far.
    """
    data, examples = plan.experiment.data, len(plan.batches.source)
    if progress.get("examples", examples) != examples:
        raise UserError(
            f"{folder} stands on a training split of {progress['examples']:,} examples, which now has {examples:,}: "
            "other batches would follow, and perhaps other examples be held out. --restart starts over"
        )
    if progress.get("records", data.made_by) != data.made_by:
        raise UserError(
            f"{folder} stands on records that {' and '.join(data.runs)} made; what made them has been trained anew "
            "since, and would make others. --restart starts over"
        )
    return {"records": data.made_by, "examples": examples}


def _train(plan: Plan, run: Run, profile: tuple[int, int] | None, began: float, again: str) -> dict[str, Any]:
    experiment, folder = plan.experiment, run.folder
    store = Store(folder, experiment.checkpoints)
    state, progress, resumed = _begun(plan, run, store)
    first, of_data = int(state.step), dict[str, Any]()
    if first < experiment.steps:
        of_data = _same_data(plan, folder, progress)
        once(experiment.data.prepare)
    batches = Stream(plan.batches, first, experiment.workers)  # a step takes a batch
    log = Log(folder, first, experiment.steps, experiment.log_every, told_by(plan), writes())
    tracing = Profile(folder / "profile", profile, first)
    saver = Saver(store, first if resumed else None)
    watchdog = Watchdog(experiment.watchdog, log.say)
    flight = Flight(log, watchdog, saver, experiment.on_nan)
    flight.loss, flight.skipped = float(progress["loss"]), int(progress.get("skipped", 0))
    seconds = lambda: progress["seconds"] + time.perf_counter() - began  # noqa: E731

    def save(state: TrainState, step: int) -> None:
        reached = {"seconds": seconds(), "loss": flight.loss, "skipped": flight.skipped, **of_data}
        with watchdog.beside("saving"):
            saver.save(state, reached, step)

    try:
        with Stopping() as stop, saver.or_stop():
            for step in range(first + 1, experiment.steps + 1):
                tracing.before(step, flight.finish)
                try:
                    asked = time.perf_counter()
                    batch = next(batches)
                    waited = time.perf_counter() - asked
                    plan.model.check_batch(batch)
                except (ReadError, ValueError) as error:
                    flight.finish()
                    if step == first + 1 and not isinstance(error, ReadError):
                        raise UserError(f"step {step}: {error}") from error
                    if step > first + 1 and saver.saved != step - 1 and jax.process_count() == 1:
                        save(state, step - 1)
                    saver.wait()
                    raise Stopped(f"step {step}: {error}; stopped, {saver.kept()}", 1) from error
                # While the step before is being computed nobody waits for this one's batch.
                waited = waited if flight.is_over else 0.0
                state, metrics = plan.train_step(state, put_batch(batch, plan.batch_sharding))
                flight.finish()
                flight.begin(step, metrics, waited)
                tracing.after(step, flight.finish)
                last, stopping = step == experiment.steps, stop.after(step)
                picture_due = bool(experiment.sample_every) and step % experiment.sample_every == 0
                save_due = last or stopping or step % experiment.checkpoints.every == 0
                if save_due or picture_due:
                    flight.finish()  # nothing is saved or drawn from a step that has not been seen to be finite
                if save_due:
                    save(state, step)
                if stopping and not last:
                    saver.wait()
                    raise Stopped(f"{stop.name}: saved step {step} in {folder}; {again} resumes", stop.code)
                if picture_due:
                    with watchdog.beside("drawing samples"):
                        draw_picture(plan, state, folder / "samples" / f"step_{step:07d}.png", log, step)
            if experiment.steps == first and not resumed:
                save(state, first)
            saver.wait()
            if stop.caught:  # during the last step: all is saved, and measuring can be asked for again
                raise Stopped(f"{stop.name}: {folder} is trained; {again} measures it", stop.code)
        watchdog.close()
        took = seconds() if experiment.steps > first else progress["seconds"]
        measured = measure(plan, state)  # a signal ends this at once: all is saved
        if measured:
            with saver.or_stop():
                log.row(experiment.steps, measured)
    finally:
        watchdog.close()
        batches.close()
        log.close()
        store.close()
        tracing.close()
    summary = _summary(plan, state, took, flight, measured)
    if writes():
        run.finish(summary)
    return summary


def _summary(
    plan: Plan, state: TrainState, seconds: float, flight: Flight, measured: dict[str, float]
) -> dict[str, Any]:
    experiment = plan.experiment
    return {
        "steps": experiment.steps,
        "seconds": round(seconds, 1),
        "device": f"{plan.mesh.size} x {jax.devices()[0].platform} {jax.devices()[0].device_kind}",
        **({} if math.isnan(flight.loss) else {"loss": flight.loss}),
        **({"skipped": flight.skipped} if flight.skipped else {}),
        **measured,
        **({"features": PIXELS.name} if any(metric.in_features for metric in experiment.metrics) else {}),
        "state_digest": state_digest(state),
    }
