"""Measure a run: `python evaluate.py runs/digits_ddpm likelihood --trace exact`; `--list` names the metrics."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import UserError, run

if TYPE_CHECKING:
    from metrics.metric import Metric

USAGE = """Measures RUN's averaged parameters, prints the numbers and adds them to RUN/evaluation.json.

RUN is a folder that train.py made; it may still be training. Without METRIC, the metrics of the run's own experiment
are measured. METRIC is a name (python evaluate.py --list), and its settings follow. A setting that is itself an object
takes a name (--integrator fixed_step); its own settings follow (--integrator.steps 50). --experiment FILE names the
file of a run made from one of your own.

--features X is what the Fréchet and kernel distances and the manifold's numbers compare images in: pixels (the
default), classifier, inception:FILE (FID's weights as published for PyTorch, which you supply), or the folder of a
finished run of an Embedder. Numbers in different features stand beside one another in evaluation.json.

--mesh.fsdp N and --mesh.model N split a model over devices; by default as in the run, where that fits those here.
--coordinator HOST:PORT --processes N --process I is for several hosts, as in train.py.

--table bits_per_dim --data digits (or mnist) is of no one run: it trains and measures every family on the same images,
and goes on where it was stopped. --rows nice glow trains these alone; --out FOLDER is for its CSV and picture.
"""


ELSEWHERE = {"fid": "frechet_distance", "fd": "frechet_distance", "nll": "likelihood", "bpd": "likelihood"}


def metric_by_name(name: str, own: "tuple[Metric, ...]") -> "Metric":
    """The run's own metric of that name, with the run's settings; or any registered one, with its defaults.

    Raises:
      UserError: there is none, or it has settings without a default.
    """
    from metrics.metric import Metric
    from training import config

    members = config.options(Metric)
    cls = {config.plain(key): cls for key, cls in members.items()}.get(config.plain(name))
    if cls is None:
        said = f"; that is {ELSEWHERE[name]} here" if name in ELSEWHERE else config.nearest(name, members)
        raise UserError(f"there is no metric {name!r}{said}")
    for metric in own:
        if type(metric) is cls:
            return metric
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if required:
        raise UserError(f"{name} has no default for {', '.join(required)}: put it among the experiment's metrics")
    return cls()


def in_features() -> list[str]:
    """Names of the metrics that --features is for."""
    from metrics.metric import Metric
    from training.config import options

    return sorted(name for name, cls in options(Metric).items() if cls.in_features)


def of_all_families(name: str, arguments: list[str]) -> None:
    """The table of that name: printed, as CSV and as a picture."""
    from reproductions import bits_per_dim
    from reproductions.densities import DATA, densities
    from reproductions.making import write_figure
    from training.cli import take
    from training.config import nearest
    from training.startup import start

    if name != "bits_per_dim":
        raise UserError(f"there is no table {name!r}; there is bits_per_dim")
    data, only = take(arguments, "--data", has_value=True), take(arguments, "--rows", has_value=True)
    out = Path(take(arguments, "--out", has_value=True) or "figures")
    names = only.split(",") if only else []
    while only and arguments and not arguments[0].startswith("-"):
        names.append(arguments.pop(0))
    if arguments:
        raise UserError(f"--table {name} takes --data, --rows and --out, not {' '.join(arguments)}")
    if data not in DATA:
        raise UserError(f"--table {name} needs --data {' or '.join(DATA)}" + (f", not {data}" if data else ""))
    start()
    there = [row.name for row in densities(data)]
    for row in names:
        if row not in there:
            raise UserError(f"--rows: there is no row {row!r}{nearest(row, there)}")
    rows = list(bits_per_dim.told(bits_per_dim.table(data, only=tuple(names))))
    write_figure(bits_per_dim, rows, out, f"bits_per_dim_{data}")
    print("\n".join(bits_per_dim.summary(rows)))
    print(f"wrote {out / f'bits_per_dim_{data}'}.png and .csv")


def main() -> None:
    arguments = sys.argv[1:]
    from training.cli import load_module, parse, take, take_cluster, take_mesh

    table = take(arguments, "--table", has_value=True)
    if table:
        of_all_families(table, arguments)
        return

    file = take(arguments, "--experiment", has_value=True)
    asked = take(arguments, "--features", has_value=True)
    if file:
        load_module(file)
    if take(arguments, "--list"):
        from metrics.metric import Metric
        from training.config import options

        names = {name: (cls.__doc__ or "").split("\n")[0] for name, cls in sorted(options(Metric).items())}
        width = max(map(len, names))
        print("\n".join(f"{name:{width}}  {line}" for name, line in names.items()))
        return
    if not arguments or arguments[0] in ("-h", "--help") or arguments[1:] in (["-h"], ["--help"]):
        print(f"usage: python evaluate.py RUN [METRIC] [settings]\n\n{USAGE}")
        print("python evaluate.py RUN METRIC --help lists the metric's settings.")
        return
    if arguments[0].startswith("-"):
        raise UserError(f"name the run's folder first: python evaluate.py RUN {' '.join(arguments)}")
    from training.distributed import writes
    from training.draw import Drawer
    from training.features import features_of
    from training.inputs import default_condition, example_batch, usable
    from training.measure import evaluation_of
    from training.run import Run
    from training.startup import start
    from training.step import named_key

    folder, cluster = Path(arguments.pop(0)), take_cluster(arguments)
    this = Run(folder)
    experiment = this.experiment()
    start()
    cluster.join()
    split = take_mesh(arguments, experiment.mesh)
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        prog = f"evaluate.py {folder} {name}"
        metrics = (parse(metric_by_name(name, experiment.metrics), arguments, prog, USAGE),)
    elif arguments:
        raise UserError(f"{arguments[0]}: settings are a metric's; name it first: python evaluate.py {folder} METRIC …")
    else:
        metrics = experiment.metrics
        if not metrics:
            raise UserError(f"the experiment of {folder} has no metrics of its own; name one (--list names them)")
    if asked and not any(metric.in_features for metric in metrics):
        own, able = (", ".join(some) for some in ([type(metric).__name__ for metric in metrics], in_features()))
        raise UserError(f"--features {asked}: features are for {able}, and what is to be measured is {own}")
    this.evaluations()  # one that cannot be added to is reported now, not after the measuring
    features = features_of(asked or "pixels", experiment.data)
    for metric in metrics:
        try:
            metric.check_features(experiment.data, features)
        except ValueError as error:
            raise UserError(str(error)) from error

    try:
        model, mesh = experiment.resolved_model(), split.build()
    except ValueError as error:
        raise UserError(str(error)) from error
    variables, step = this.averaged(model, example_batch(experiment), mesh, split.fsdp_from)
    usable(model, variables)
    draw = Drawer(model, experiment.sampler, experiment.data.shape, mesh)
    key = named_key(experiment.seed, "sample")
    samples = lambda n: draw(variables, key, n, default_condition(model, experiment.data, n)).x  # noqa: E731, as at the end of training
    evaluation = dataclasses.replace(evaluation_of(model, variables, experiment.data, samples), features=features)
    print(f"step {step} of {folder}", flush=True)
    if any(metric.in_features for metric in metrics):
        print(f"features: {features.name}", flush=True)
    for metric in metrics:
        try:
            numbers = metric(evaluation)
        except (ValueError, TypeError) as error:
            raise UserError(f"{type(metric).__name__}: {error}") from error
        for name, number in numbers.items():
            print(f"{name}  {number:.6g}", flush=True)
        if writes():
            this.add_evaluation(metric, step, numbers, features.name if metric.in_features else "")
    print(f"added to {folder / 'evaluation.json'}")


if __name__ == "__main__":
    run(main)
