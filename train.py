"""Train an experiment: `python train.py digits_ddpm [--steps 500] [--model.path cosine] …`; `--list` names them."""

import sys
from pathlib import Path

from training.errors import UserError, run

USAGE = """Trains EXPERIMENT, or resumes it where it stopped.

EXPERIMENT is a name (python train.py --list) or a file of your own (my.py). Besides the settings below:

  --workdir DIR   the run's folder; runs/EXPERIMENT by default. A folder that holds this run is resumed;
                  what else is in it is left alone
  --restart       start over: delete the run in that folder first
  --tiny          the experiment's tiny form, which runs in seconds
  --profile A:B   a trace of steps A to B by jax's profiler, in the run's folder (ui.perfetto.dev shows it)
  --preset NAME   other settings that the experiment's file holds, such as a paper's
  --plan-memory   print what a step needs under every checkpointing policy, and train nothing
  --memory-limit SIZE   of each device (12GiB); by default what it has free. Within it --remat auto takes the policy
                  with the least recomputation, and --batch-size auto the largest batch
  --replay STEP   take the run to that step again, without changing it, and say what of the batch is not finite
  --coordinator HOST:PORT --processes N --process I   this is process I of N on several hosts. TPU pods, SLURM, Open MPI
                  and Kubernetes need none of it; --distributed insists on one of them (docs/clusters.md)
  --sweep FILE    train once for every element of the list that FILE defines, such as
                  sweep = [{"seed": s, "optimizer.learning_rate": r} for s in range(3) for r in (1e-3, 3e-4)]
                  each run in a folder of its own within --workdir, runs/EXPERIMENT_sweep by default
  --at-once N     of a sweep: N runs at a time, one a device; by default one after another, each on all devices

A setting that is itself an object takes a name (--model.path cosine); its own settings follow (--model.path.s 0.01).
"""


def main() -> None:
    arguments = sys.argv[1:]
    from training.cli import experiment_names, load_experiment, parse, take, take_cluster, take_number
    from training.fit import fitted, table, take_wishes

    if take(arguments, "--list"):
        names = experiment_names()
        width = max(map(len, names))
        print("\n".join(f"{name:{width}}  {line}" for name, line in names.items()))
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python train.py EXPERIMENT [settings]\n\n{USAGE}")
        print("python train.py EXPERIMENT --help lists the experiment's settings.")
        return
    if arguments[0].startswith("-"):
        raise UserError(f"name the experiment first: python train.py EXPERIMENT {' '.join(arguments)}")
    name = arguments.pop(0)
    given = list(arguments)
    tiny, restart = bool(take(arguments, "--tiny")), bool(take(arguments, "--restart"))
    folder = take(arguments, "--workdir", has_value=True)
    preset = take(arguments, "--preset", has_value=True)
    profile = take(arguments, "--profile", has_value=True)
    if tiny and preset:
        raise UserError("--tiny and --preset are two forms of an experiment: choose one")
    replayed, cluster = take_number(arguments, "--replay"), take_cluster(arguments)
    wishes = take_wishes(arguments)
    file = take(arguments, "--sweep", has_value=True)
    if file is not None:
        from training.trials import sweep

        sweep(name, file, given, arguments)
        return
    experiment = parse(load_experiment(name, tiny, preset), arguments, f"train.py {name}", USAGE)
    form = "_tiny" if tiny else f"_{preset}" if preset else ""
    workdir = Path(folder or Path("runs") / (Path(name).stem + form))

    from training.loop import train
    from training.replay import replay
    from training.startup import start
    from training.telemetry import parse_profile

    span = parse_profile(profile) if profile is not None else None
    start()
    cluster.join()
    if replayed is not None:
        for line in replay(experiment, workdir, replayed):
            print(line, flush=True)
        return
    if wishes.table:
        for line in table(experiment, name, wishes):
            print(line, flush=True)
        return
    if wishes:
        experiment = fitted(experiment, workdir, restart, wishes)
    summary = train(experiment, workdir, restart, span)
    width = max(map(len, summary))
    print("\n".join(f"{key:{width}}  {value}" for key, value in summary.items()))
    print(f"run folder: {workdir}")


if __name__ == "__main__":
    run(main)
