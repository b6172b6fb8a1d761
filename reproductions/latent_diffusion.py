"""Latent diffusion beside diffusion of pixels, the same network trained for as long (2112.10752).

The latents are those of a VQ-VAE, the network is a DiT of as many tokens on either side: patches of 1 of the latents,
larger ones of the pixels. Steps, batches, loss and sampler are the same, and a step costs about the same; the latents
have cost the training of their first stage before, which is told apart, and a pass of its encoder over the training
split, which is not counted where it has been done here. Samples are of all classes in turn, drawn 500 at once,
decoding counted and compiling not; figures and what stands beside them are as in code_priors.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from metrics.neighbours import two_sample_accuracy
from models.denoiser import Denoiser
from reproductions.code_priors import (
    CLASSES,
    FIRST,
    SAMPLES,
    ByClass,
    against_steps,
    cell,
    in_turn,
    lines_of_references,
    prior,
    references,
)
from reproductions.reproduction import Row, Source
from reproductions.runs import cost, in_runs, made, run_of
from samplers.diffusion import Diffusion
from training.codes import Latents
from training.mesh import Mesh
from training.picture import grid
from training.trained import Trained
from training.trained import trained as read

SCALES = {"tiny": None, "small": None}
SOURCE = Source(
    paper="High-Resolution Image Synthesis with Latent Diffusion Models", arxiv="2112.10752", equation="§3.2"
)
PIXELS = {"small": ("mnist_flow", 4), "tiny": ("digits_flow", 2)}  # experiment, and the patch of as many tokens
SAME = ("steps", "batch_size", "ema", "optimizer", "loss", "sampler", "remat")  # in both trainings
STEPS = (5, 10, 20)  # of Heun's method
SHOWN = 80
SIZE = (14, 4.6)


def pixels(scale: str, latents: Trained) -> Path:
    """The run of pixels that is trained as that of latents was."""
    name, patch = PIXELS[scale]
    own = latents.experiment
    assert isinstance(own.model, Denoiser)
    net: Any = own.model.net
    changes: dict[str, Any] = {field: getattr(own, field) for field in SAME}
    changes |= {"model": replace(own.model, net=net.clone(patch=patch)), "metrics": (), "sample_every": 0}
    return made(name, in_runs(f"{name}_equal_time", scale), **changes)


def decoding_seconds(data: Latents, z: Float[np.ndarray, "n rows columns d"]) -> float:
    """What decoding takes without compiling. The values do not matter to it."""
    stage = data.stage
    variables = stage.run.averaged(Mesh(data=1).build())
    decode = jax.jit(lambda v, z: stage.model.from_latents(v, z, stage.shape)).lower(variables, z).compile()
    began = time.perf_counter()
    jax.block_until_ready(decode(variables, z))
    return time.perf_counter() - began


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    first, samples = run_of(FIRST[scale]), SAMPLES[scale]
    latent = prior("latent_diffusion_mnist", scale)
    runs = {"latents": (latent, read(latent))}
    pixel = pixels(scale, runs["latents"][1])
    runs["pixels"] = (pixel, read(pixel))
    judge = ByClass(read(first).experiment.data, samples)
    test = judge.test["x"]
    real, reconstructed = references(first, judge)
    others = judge.train["x"][in_turn(judge.train["label"], len(test))]
    yield real | {"two_sample_accuracy": two_sample_accuracy(others, test)}
    yield reconstructed  # no two-sample accuracy: the nearest of each would be its own original
    for model, (folder, run) in runs.items():
        data = run.experiment.data
        about: Row = {"numbers": "x".join(map(str, data.shape)), **cost(folder, run), "steps_of_training": run.step}
        about["first_stage_seconds"] = reconstructed["training_seconds"] if isinstance(data, Latents) else 0.0
        for steps in STEPS:
            assert isinstance(run.experiment.sampler, Diffusion)
            sampler = replace(run.experiment.sampler, steps=steps)
            drawn, seconds = run.draw(sampler, samples)
            if isinstance(data, Latents):
                seconds += decoding_seconds(data, drawn.x)
            x = data.shown(drawn.x)
            row: Row = {"model": model, **about, "steps": steps, "network_calls": sampler.network_calls()}
            row |= {**judge(x, np.arange(samples) % CLASSES), "two_sample_accuracy": two_sample_accuracy(x, test)}
            yield row | {"seconds_a_sample": seconds / samples, "images": x[:SHOWN]}


def draw(rows: list[Row], figure: Figure) -> None:
    parts: Any = figure.subfigures(1, 2, width_ratios=(2, 1))
    curves = {model: [row for row in rows if row["model"] == model] for model in ("latents", "pixels")}
    for axes, (model, own) in zip(parts[0].subplots(1, 2), curves.items(), strict=True):
        last = own[-1]
        axes.imshow(grid(last["images"], columns=CLASSES))
        title = f"{model}, {last['numbers']}: {last['training_seconds']:.0f} s of training"
        if last["first_stage_seconds"]:
            title += f",\nafter {last['first_stage_seconds']:.0f} s of their first stage"
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    axes = parts[1].subplots()
    for (model, own), marker in zip(curves.items(), "os", strict=True):
        x, y = [row["network_calls"] for row in own], [row["frechet_classifier"] for row in own]
        axes.loglog(x, y, marker=marker, ms=6, lw=1.3, label=f"{model}, {own[0]['numbers']}")
    lines_of_references(axes, rows)
    against_steps(axes, {row["network_calls"] for own in curves.values() for row in own}, "network calls of a sample")


def summary(rows: list[Row]) -> Iterator[str]:
    heads = f"{'numbers':>9}{'calls':>7}{'confident':>11}{'right':>8}{'Fréchet':>9}{'two-sample':>12}{'ms/sample':>11}"
    yield f"{'':16}{heads}"
    for row in rows:
        seconds = row.get("seconds_a_sample")
        line = f"{row['model']:16}{row.get('numbers', '–'):>9}{cell(row.get('network_calls'), 7, 'd')}"
        line += f"{row['confident']:11.3f}{row['class_accuracy']:8.3f}{row['frechet_classifier']:9.3f}"
        yield line + cell(row.get("two_sample_accuracy"), 12, ".3f") + cell(seconds and 1e3 * seconds, 11, ".2f")
    latents, pixels = (next(row for row in rows if row["model"] == model) for model in ("latents", "pixels"))
    for row in (latents, pixels):
        line = f"{row['model']}: {row['parameters']:,} parameters, {row['steps_of_training']} steps in "
        line += f"{row['training_seconds']:.0f} s"
        yield line + (f", after {row['first_stage_seconds']:.0f} s of the first stage" if row is latents else "")
    ratio = pixels["training_seconds"] / latents["training_seconds"]
    if abs(ratio - 1.0) > 0.05:
        yield f"the two trainings did not take the same time: pixels {ratio:.2f} times that of latents"


def headline(rows: list[Row]) -> str:
    last = {row["model"]: row for row in rows if row["model"] in ("latents", "pixels")}  # of the most calls
    told = (f"{model} {row['frechet_classifier']:.1f}" for model, row in last.items())
    calls = last["latents"]["network_calls"]
    return f"Fréchet distance in {calls} network calls, classifier features: {', '.join(told)}"
