"""`train.py --remat auto`, `--batch-size auto` and `--plan-memory`: settings that are chosen by the memory there is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from training.cli import take
from training.errors import UserError
from training.experiment import Experiment
from training.memory import Need, Planner, available, parse_size, shown
from training.run import Run


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line leaves to be chosen."""

    remat: bool = False
    batch_size: bool = False
    table: bool = False
    limit: str | None = None

    def __post_init__(self) -> None:
        if self.remat and self.batch_size and not self.table:
            raise UserError(
                "with both --remat auto and --batch-size auto there is no one answer: say one of them; --plan-memory "
                "--batch-size auto shows the largest batch of every policy"
            )
        if self.limit is not None and not self:
            raise UserError("--memory-limit goes with --remat auto, --batch-size auto or --plan-memory")

    def __bool__(self) -> bool:
        return self.remat or self.batch_size or self.table


def take_wishes(arguments: list[str]) -> Wishes:
    """Takes the wishes out of the command line."""
    auto = [name for name in ("--remat", "--batch-size", "--batch_size") if _take_auto(arguments, name)]
    table, limit = take(arguments, "--plan-memory"), take(arguments, "--memory-limit", has_value=True)
    return Wishes(remat="--remat" in auto, batch_size=bool(set(auto) - {"--remat"}), table=bool(table), limit=limit)


def _take_auto(arguments: list[str], flag: str) -> bool:
    """Removes `flag auto` or `flag=auto`, whichever there is."""
    for i, word in enumerate(arguments):
        words = 1 if word == f"{flag}=auto" else 2 if arguments[i : i + 2] == [flag, "auto"] else 0
        if words:
            del arguments[i : i + words]
            return True
    return False


def cache_folder() -> Path | None:
    """Where needs are remembered: beside the compiled programs; nowhere if these are not kept."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    return Path(folder) / "memory" if folder else None


def fitted(experiment: Experiment, folder: Path, restart: bool, wishes: Wishes) -> Experiment:
    """The experiment with its wishes granted; a run that is resumed keeps what was chosen for it."""
    saved = None if restart or not (folder / "config.json").exists() else Run(folder).experiment()
    if saved is not None:
        kept = {"remat": saved.remat} if wishes.remat else {"batch_size": saved.batch_size}
        print(f"{', '.join(f'{name}={value}' for name, value in kept.items())}, as in {folder}", flush=True)
        return replace(experiment, **kept)
    limit, whose = limit_of(wishes)
    planner = Planner(experiment, cache_folder())
    if wishes.remat:
        need = planner.choose(limit)
        print(f"remat={need.remat}: {shown(need.peak)} of {shown(limit)} ({whose})", flush=True)
        return replace(experiment, remat=need.remat)
    streams = getattr(experiment.data, "streams", 0)
    if streams:
        raise UserError(f"the batch is the data's {streams} streams: --batch-size auto has no say in it")
    size = planner.largest_batch(experiment.remat, limit)
    if not size:
        raise UserError(f"not even a batch of {planner.unit} fits into {shown(limit)} with remat={experiment.remat}")
    end = "all of the data, and" if size + planner.unit > planner.examples else "the largest"
    print(f"batch_size={size}: {end} within {shown(limit)} ({whose})", flush=True)
    return replace(experiment, batch_size=size)


def limit_of(wishes: Wishes) -> tuple[int, str]:
    """Bytes a device, and who says so."""
    return (parse_size(wishes.limit), "--memory-limit") if wishes.limit else available()


def table(experiment: Experiment, name: str, wishes: Wishes) -> Iterator[str]:
    """The lines of `--plan-memory`."""
    limit, whose = limit_of(wishes)
    planner = Planner(experiment, cache_folder())
    device, batch = jax.devices()[0], experiment.batch_size
    yield f"{name}: one training step on {planner.devices} x {device.device_kind}, batch {batch}"
    yield f"{shown(planner.state)} are parameters, their average and the optimiser's state"
    yield f"limit {shown(limit)} a device, {whose}"
    yield f"{'remat':14}{'peak':>12}{'temporary':>12}{'extra FLOPs':>13}   fits" + (
        "   largest batch" if wishes.batch_size else ""
    )
    needs = planner.table()
    least = next(need.flops for need in needs if need.remat == "none")
    for need in needs:
        largest = f"{planner.largest_batch(need.remat, limit):16}" if wishes.batch_size else ""
        yield _row(need, least, limit) + largest
    if len({need.flops for need in needs}) == 1:
        yield "no policy does anything for this model: it has no chain of equal steps"
    fits = [need.remat for need in needs if need.peak <= limit]
    yield f"--remat auto takes {fits[0]}" if fits else "none of them fits: a smaller --batch-size, or --accumulate"


def _row(need: Need, least: int, limit: int) -> str:
    extra = f"{100 * (need.flops / least - 1):+.1f} %" if least else "–"
    fits = "yes" if need.peak <= limit else f"{shown(need.peak - limit)} too much"
    return f"{need.remat:14}{shown(need.peak):>12}{shown(need.temporary):>12}{extra:>13}   {fits}"
