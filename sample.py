"""Draw from a run, finished or not: `python sample.py runs/digits_ddpm --n 64 --steps 20 --sampler ddpm`."""

import dataclasses
import inspect
import re
import sys
import time
import typing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from training.errors import UserError, run

USAGE = """Draws samples from RUN's averaged parameters and writes samples.png and samples.npz into RUN, over those of
an earlier call, or with --out FOLDER there; text is printed, and written to samples.txt.

RUN is a folder that train.py made; it may still be training. --sampler and --grid take a name (--sampler ddim), and
their own settings follow (--sampler.eta 0.5); --sampler FILE.py:NAME takes a sampler of one's own, and
--list-samplers prints the built-in ones. --experiment FILE names the file of a run made from one of your own.

--guidance 3, --weak RUN and --classifier RUN guide to a class; --inpaint MASK.png IMAGE.png, --deblur STD IMAGE.png and
--super-resolve FACTOR IMAGE.png draw what agrees with a given image, which samples.png then shows first.

--prompt TEXT is what a text goes on from, or what is translated; --length N asks for more of it than the data's own.

--mesh.fsdp N and --mesh.model N split a model over devices; by default as in the run, where that fits those here.
--coordinator HOST:PORT --processes N --process I is for several hosts, as in train.py.

Codes and latents are decoded by the first stage that they come from; samples.npz then holds `images`, too.
"""


def comment(owner: type, name: str) -> str:
    """The comment beside a field in its class's source: its help text."""
    for cls in owner.__mro__[:-1]:
        found = re.search(rf"^ +{name}: .*?# (.*)$", inspect.getsource(cls), re.MULTILINE)
        if found:
            return found[1]
    return ""


def options(sampler: Any) -> Any:
    """The flags of a run: those of every run, and the fields of its sampler, `solver` by the name of `sampler`."""
    from training.edit import Edit

    common: list[tuple[str, Any, Any, str]] = [
        ("n", int, 64, "how many samples"),
        ("seed", int, 0, "sample i of a seed is the same whatever n and the batch size"),
        ("label", int | None, None, "class to draw; by default all in turn, where the model has classes"),
        ("prompt", str | None, None, "text that samples begin with; of a translator, what is translated"),
        ("out", Path | None, None, "folder to write to; the run's own by default"),
        ("batch_size", int, 256, "samples drawn at once"),
        ("trajectory", bool, False, "also write every state from noise to data: trajectory.gif and trajectory.npz"),
    ]
    for owner in (sampler, Edit()):
        hints, taken = typing.get_type_hints(type(owner)), {name for name, *_ in common}
        for entry in dataclasses.fields(owner):
            name = "sampler" if entry.name == "solver" else entry.name
            if name not in taken:  # a sampler that is not Diffusion may have a field of an edit's name
                common.append((name, hints[entry.name], getattr(owner, entry.name), comment(type(owner), entry.name)))
    fields = [
        (name, Annotated[hint, tyro.conf.arg(help=text)] if text else hint, dataclasses.field(default=value))
        for name, hint, value, text in common
    ]
    return dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)()


def rebuilt(sampler: Any, chosen: Any) -> Any:
    """The run's sampler with the fields of the command line."""
    names = [entry.name for entry in dataclasses.fields(sampler)]
    return dataclasses.replace(
        sampler, **{name: getattr(chosen, "sampler" if name == "solver" else name) for name in names}
    )


def sampler_of_ones_own(arguments: list[str]) -> str | None:
    """Takes `--sampler FILE.py:NAME` out of the arguments; leaves a built-in sampler's name to the parser."""
    from samplers import own
    from training.cli import take

    name = take(list(arguments), "--sampler", has_value=True)
    return take(arguments, "--sampler", has_value=True) if name and own.is_own(name) else None


def exchanged(sampler: Any, arguments: list[str]) -> Any:
    """The run's sampler, or another of the house by `--sampler NAME`, where it has no solver that this would name."""
    from samplers.sampler import Sampler
    from training.cli import member, take

    name = None if hasattr(sampler, "solver") else take(arguments, "--sampler", has_value=True)
    return sampler if name is None else member("--sampler", Sampler, name, arguments)


def main() -> None:
    arguments = sys.argv[1:]
    if "--list-samplers" in arguments:
        from samplers.catalogue import listing

        print(listing())
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python sample.py RUN [options]\n\n{USAGE}\npython sample.py RUN --help lists RUN's options.")
        return
    if arguments[0].startswith("-"):
        raise UserError(f"name the run's folder first: python sample.py RUN {' '.join(arguments)}")
    from data.npz import write_npz
    from samplers import own
    from training.cli import load_module, parse, take, take_cluster, take_mesh
    from training.distributed import writes
    from training.draw import Drawer
    from training.edit import Edit, edited
    from training.inputs import example_batch, usable
    from training.picture import picture, save_gif, save_png, texts, write_texts
    from training.run import Run
    from training.startup import start
    from training.step import named_key

    folder, cluster = Path(arguments.pop(0)), take_cluster(arguments)
    file = take(arguments, "--experiment", has_value=True)
    if file:
        load_module(file)
    run = Run(folder)
    experiment = run.experiment()
    default = experiment.sampler
    name = sampler_of_ones_own(arguments)
    if name:
        if not hasattr(default, "solver"):
            raise UserError(f"{folder} is no diffusion run: it is not drawn from by {name}")
        default = dataclasses.replace(default, solver=own.load(name)())
    default = exchanged(default, arguments)
    cluster.join()
    split = take_mesh(arguments, experiment.mesh)
    chosen = parse(options(default), arguments, f"sample.py {folder}", USAGE)
    if chosen.n < 1 or chosen.batch_size < 1:
        raise UserError(f"--n and --batch-size must be at least 1, got {chosen.n} and {chosen.batch_size}")
    if not 0 <= chosen.seed < 2**31:
        raise UserError(f"--seed {chosen.seed} is not in [0, 2^31)")
    model = experiment.resolved_model()
    try:
        sampler = rebuilt(default, chosen)
    except ValueError as error:  # a setting that the sampler refuses
        raise UserError(str(error)) from error
    own_fields = {entry.name for entry in dataclasses.fields(sampler)}
    asked = Edit(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(Edit) if f.name not in own_fields})
    edit = edited(asked, sampler, folder, experiment)
    sampler, classes = edit.sampler, edit.classes
    prompt: dict[str, Any] = {}
    if chosen.prompt is not None:
        try:
            prompt = experiment.data.prompted(chosen.prompt)
        except ValueError as error:
            raise UserError(f"--prompt: {error}") from error
    if chosen.label is not None and not 0 <= chosen.label < classes:
        allowed = f"0 to {classes - 1}" if classes else "none: the model is not conditioned on a class"
        raise UserError(f"--label {chosen.label}: allowed is {allowed}")

    start()
    if name:
        own.rehearse(getattr(sampler, "solver"), name)  # noqa: B009, only a sampler that has one gets here
    try:
        mesh = split.build()  # samples do not depend on it
    except ValueError as error:
        raise UserError(str(error)) from error
    variables, step = run.averaged(model, example_batch(experiment), mesh, split.fsdp_from)
    usable(model, variables)
    data = experiment.data
    variables = edit.variables(variables, mesh)
    condition = edit.condition(model, data, chosen.n, chosen.label, prompt)
    draw = Drawer(model, sampler, data.shape, mesh, chosen.batch_size)
    began = time.perf_counter()
    try:
        drawn = draw(variables, named_key(chosen.seed, "sample"), chosen.n, condition, chosen.trajectory)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    x = drawn.x
    seconds = time.perf_counter() - began - draw.compile_seconds
    if not writes():
        return

    out = chosen.out or folder
    out.mkdir(parents=True, exist_ok=True)
    shown = data.shown(x)
    arrays: dict[str, Any] = {"x": x, "seed": chosen.seed, "step": step, **(condition or {})}
    if data.pictured != data:
        arrays["images"] = shown
    write_npz(out / "samples.npz", arrays)
    written = ["samples.npz"]
    text = texts(data, x)
    if text is not None:
        write_texts(text, out / "samples.txt")
        written.insert(0, "samples.txt")
        print(f"\n{'-' * 40}\n".join(text))
    else:
        try:
            pictured = shown if edit.shown is None else np.concatenate([edit.shown, shown])
            save_png(picture(pictured), out / "samples.png")
            written.insert(0, "samples.png")
        except ValueError as error:
            print(f"no picture: {error}")
    if drawn.trajectory is not None:
        write_npz(out / "trajectory.npz", {"x": drawn.trajectory})
        written.append("trajectory.npz")
        try:
            save_gif(np.stack([data.shown(state) for state in drawn.trajectory]), out / "trajectory.gif")
            written.append("trajectory.gif")
        except ValueError as error:
            print(f"no animation: {error}")
    calls = str(sampler.network_calls())
    if drawn.nfe is not None:
        calls = str(drawn.nfe.min())
        if drawn.nfe.min() < drawn.nfe.max():
            calls = f"{drawn.nfe.mean():.1f} (from {drawn.nfe.min()} to {drawn.nfe.max()})"
    wrong = int((~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).sum())
    if wrong:
        print(f"warning: {wrong} of {chosen.n} samples are not finite", file=sys.stderr)
    where = f"step {step}" + f" of {experiment.steps}" * (step < experiment.steps)
    print(
        f"{chosen.n} samples from {where}: {calls} {sampler.UNIT}, {seconds:.2f} s, "
        f"{seconds / chosen.n:.4f} s a sample (and {draw.compile_seconds:.1f} s to compile)"
    )
    print(f"wrote {' and '.join(str(out / name) for name in written)}")


if __name__ == "__main__":
    run(main)
