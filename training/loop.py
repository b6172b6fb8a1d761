"""One training loop for every experiment.

read the experiment → eval_shape the step and the sampler (a wrong setting fails here) → restore or initialise → make
the records that are made and not read → for each batch: dispatch step n, log step n−1 → save state and data position
together → finish with summary.json.
"""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.dataset import Dataset, stream
from metrics.features import PIXELS
from metrics.metric import Evaluation
from models.model import Model, Variables
from training.checkpoint import Store
from training.errors import Stopped, UserError
from training.experiment import Experiment, without_remat
from training.handover import check_folder
from training.log import Log
from training.mesh import put_batch
from training.picture import picture, save_png, texts, write_texts
from training.plan import Plan
from training.run import Run
from training.state import TrainState, state_digest
from training.telemetry import Profile, told_by

EXIT_STATUS = {signal.SIGINT: 0, signal.SIGTERM: 143}


def train(
    experiment: Experiment, folder: Path, restart: bool = False, profile: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Trains to the last step, or resumes a run that was cut short. Returns the summary.

    Args:
      profile: the first and the last step of which the profiler's trace goes to `folder`/profile.

    Raises:
      UserError: a setting is wrong, or the folder holds a run with other settings; nothing has been computed.
      Stopped: a signal asked for it, the loss is not finite, or a checkpoint could not be written.
    """
    began = time.perf_counter()
    experiment = experiment.pinned()
    if profile and profile[0] > experiment.steps:
        raise UserError(f"step {profile[0]} cannot be profiled: the run has {experiment.steps}")
    plan = Plan(experiment)
    run = Run(folder)
    check_folder(experiment, folder)
    run.open(experiment, restart)
    store = Store(folder, experiment.checkpoints)
    restored = store.restore(plan.state_like)
    iterator = stream(plan.batches)
    if restored is None:
        state, progress = plan.initial(), {"position": iterator.get_state(), "seconds": 0.0, "loss": math.nan}
    else:
        state, progress = restored
        iterator.set_state(progress["position"])
    first = int(state.step)
    run.forget_after(first)
    if restored and first == experiment.steps:
        print(f"{folder} is finished; measuring it again (--restart trains anew)", flush=True)
    elif first:
        print(f"resumed {folder} at step {first} of {experiment.steps}", flush=True)

    records = progress.get("records", "")
    if first < experiment.steps:
        if restored and records != experiment.data.made_by:
            raise UserError(
                f"{folder} stands at step {first} on records that {' and '.join(experiment.data.runs)} made; what made "
                "them has been trained anew since, and would make others. --restart starts over"
            )
        records = experiment.data.made_by
        experiment.data.prepare()
    log = Log(folder, first, experiment.steps, experiment.log_every, told_by(plan))
    tracing = Profile(folder / "profile", profile, first)
    seconds = lambda: progress["seconds"] + time.perf_counter() - began  # noqa: E731
    saved = first if restored else None
    loss = float(progress["loss"])
    caught: list[signal.Signals] = []
    previous = {number: signal.signal(number, _catcher(caught)) for number in EXIT_STATUS}
    try:
        in_flight: tuple[int, Any] | None = None

        def finish() -> None:
            """Waits for the step in flight, checks it and logs it."""
            nonlocal in_flight, loss
            if in_flight is not None:
                step, values = in_flight[0], {name: float(v) for name, v in jax.device_get(in_flight[1]).items()}
                in_flight = None
                _check_finite(step, values, saved, store)
                log.step(step, values)
                loss = values["loss"]

        for step in range(first + 1, experiment.steps + 1):
            tracing.before(step, finish)
            batch = next(iterator)
            try:
                plan.model.check_batch(batch)
            except ValueError as error:
                if step == first + 1:
                    raise UserError(f"step {step}: {error}") from error
                finish()
                _wait(store, saved)
                raise Stopped(f"step {step}: {error}; stopped, {_kept(saved, store)}", 1) from error
            state, metrics = plan.train_step(state, put_batch(batch, plan.batch_sharding))
            finish()
            in_flight = (step, metrics)
            tracing.after(step, finish)
            last, stopping = step == experiment.steps, bool(caught)
            picture_due = bool(experiment.sample_every) and step % experiment.sample_every == 0
            if last or stopping or picture_due or step % experiment.checkpoints.every == 0:
                finish()  # nothing is saved or drawn from a step that has not been seen to be finite
            if last or stopping or step % experiment.checkpoints.every == 0:
                now = {"position": iterator.get_state(), "seconds": seconds(), "loss": loss, "records": records}
                _save(store, state, now, saved)
                saved = step
            if stopping and not last:
                _wait(store, saved)
                name = caught[0].name
                raise Stopped(
                    f"{name}: saved step {step} in {folder}; the same command resumes", EXIT_STATUS[caught[0]]
                )
            if picture_due:
                draw_picture(plan, state, folder / "samples" / f"step_{step:07d}.png", log, step)
        if experiment.steps == first and restored is None:
            _save(store, state, progress, saved)
        _wait(store, saved)
        if caught:  # during the last step: all is saved, and measuring can be asked for again
            raise Stopped(
                f"{caught[0].name}: {folder} is trained; the same command measures it", EXIT_STATUS[caught[0]]
            )
        took = seconds() if experiment.steps > first else progress["seconds"]
        measured = measure(plan, state)
        if measured:
            log.row(experiment.steps, measured)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        log.close()
        store.close()
        tracing.close()
    device = jax.devices()[0]
    summary = {
        "steps": experiment.steps,
        "seconds": round(took, 1),
        "device": f"{plan.mesh.size} x {device.platform} {device.device_kind}",
        **({} if math.isnan(loss) else {"loss": loss}),
        **measured,
        **({"features": PIXELS.name} if any(metric.in_features for metric in experiment.metrics) else {}),
        "state_digest": state_digest(state, iterator.get_state()),
    }
    run.finish(summary)
    return summary


def draw_picture(plan: Plan, state: TrainState, path: Path, log: Log, step: int) -> None:
    """A picture of samples, or what they read, where they are text."""
    data, x = plan.experiment.data, plan.samples(state, plan.experiment.sample_count)
    text = texts(data, x)
    if text is not None:
        write_texts(text, path.with_suffix(".txt"))
        log.text(step, text)
        return
    try:
        pixels = picture(data.shown(x))
    except ValueError as error:
        log.say(f"no picture of step {step}: {error}")
        return
    save_png(pixels, path)
    log.picture(step, pixels)


def evaluation_of(
    model: Model, variables: Variables, data: Dataset, samples: Callable[[int], np.ndarray]
) -> Evaluation:
    """What metrics look at. `samples(n)` draws the first n samples; what has been drawn is not drawn again."""
    drawn = np.zeros((0,))

    def draw(n: int) -> np.ndarray:
        nonlocal drawn
        if len(drawn) < n:
            drawn = samples(n)
        return drawn[:n]

    # A metric may differentiate forwards, for which not every policy has a rule; and none of them is needed.
    return Evaluation(without_remat(model), variables, data, draw)


def measure(plan: Plan, state: TrainState) -> dict[str, float]:
    """The experiment's metrics on the averaged parameters."""
    variables = {"params": state.average, "state": state.model}
    evaluation = evaluation_of(plan.model, variables, plan.experiment.data, lambda n: plan.samples(state, n))
    measured: dict[str, float] = {}
    for metric in plan.experiment.metrics:
        try:
            measured |= metric(evaluation)
        except ValueError as error:  # the run is trained: one number that cannot be had does not undo it
            print(f"warning: {metric} could not be measured: {error}", flush=True)
    return measured


def _catcher(caught: list[signal.Signals]) -> Callable[[int, Any], None]:
    def handler(number: int, frame: Any) -> None:
        if caught:  # asked twice: stop waiting for the step
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    return handler


def _check_finite(step: int, values: dict[str, float], saved: int | None, store: Store) -> None:
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        _wait(store, saved)
        kept = _kept(saved, store)
        raise Stopped(f"step {step}: {', '.join(wrong)}; stopped, nothing was overwritten, {kept}", 1)


def _kept(saved: int | None, store: Store) -> str:
    return f"the last good checkpoint is step {saved} in {store.folder}" if saved else "nothing had been saved yet"


def _save(store: Store, state: TrainState, progress: dict[str, Any], saved: int | None) -> None:
    _guarded(lambda: store.save(state, progress), store, saved)


def _wait(store: Store, saved: int | None) -> None:
    _guarded(store.wait, store, saved)


def _guarded(write: Callable[[], None], store: Store, saved: int | None) -> None:
    try:
        write()
    except Exception as error:  # a full disk reaches us as OSError, ValueError or tensorstore's own
        known = (
            "No space left on device",
            "File too large",
            "Permission denied",
            "Read-only file system",
            "Disk quota",
        )
        first_line = str(error).strip().split("\n")[0][:300]
        reason = next((phrase for phrase in known if phrase in str(error)), first_line)
        kept = store.steps()
        where = f"checkpoints {kept} in {store.folder} are intact" if kept else "no checkpoint had been written before"
        raise Stopped(f"a checkpoint could not be written ({reason}); {where}", 1) from error
