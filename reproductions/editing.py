"""Inpainting, deblurring and super-resolution of held-out images by one unconditional or class-conditional flow.

Replacement: DDNM's range–null step (2212.00490 eq. 13); reconstruction: ΠGDM (Song et al., ICLR 2023). The network was
trained on none of these tasks. The residual is the root mean square of y − A·x over what was measured; the error, that
of x against the image y was made from. No class is told.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from data.pixels import to_uint8
from models.model import NULL_LABEL
from paths.grids import Uniform
from reproductions.guidance_sweep import CUT
from reproductions.reproduction import Row, Source
from samplers.ddim import DDIM
from samplers.ddnm import DDNM
from samplers.diffusion import Diffusion
from samplers.operators import Blur, Downsample, Mask, Operator
from samplers.pigdm import PiGDM
from samplers.transforms import Transform
from training.trained import Trained

SCALES = {"tiny": CUT, "small": "mnist_flow", "paper": "cifar10_dit"}
SOURCE = Source(
    paper="Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model; ΠGDM (ICLR 2023)",
    arxiv="2212.00490",
    equation="eq. 13 of the first",
)
STEPS = {"tiny": 20, "small": 100, "paper": 100}
IMAGES = 12
TASKS: dict[str, Operator] = {
    "inpainting": Mask(),
    "deblurring": Blur(std=1.0),
    "super-resolution": Downsample(factor=2),
}
SIZE = (12, 10)


def conditions(task: str, x: np.ndarray) -> dict[str, Any]:
    """What is known of each image; for inpainting, all but a square in the middle."""
    n, height, width, _ = x.shape
    condition: dict[str, Any] = {}
    if task == "inpainting":
        mask = np.ones((n, height, width, 1), np.float32)
        mask[:, height // 4 : -height // 4, width // 4 : -width // 4] = 0.0
        condition["mask"] = jnp.asarray(mask)
    linear = TASKS[task].bind(condition)
    return condition | {"known": linear.apply(jnp.asarray(x))}


def rows(scale: str, trained: Trained | None) -> Iterator[Row]:
    assert trained is not None
    x = trained.experiment.data.arrays("test", 100)["x"]
    for task, operator in TASKS.items():
        condition = conditions(task, x)
        linear = operator.bind(condition)
        known = np.asarray(condition["known"])
        if trained.model.num_classes:  # pyright: ignore[reportAttributeAccessIssue]
            condition["label"] = jnp.full(len(x), NULL_LABEL)
        methods: dict[str, Transform] = {
            "replacement": DDNM(operator=operator),
            "reconstruction": PiGDM(operator=operator),
        }
        for method, transform in methods.items():
            sampler = Diffusion(solver=DDIM(), grid=Uniform(), steps=STEPS[scale], transforms=(transform,))
            made = trained.draw(sampler, len(x), condition)[0].x
            residual = known - np.asarray(linear.apply(jnp.asarray(made)))
            error = float(np.sqrt(np.mean((made - x) ** 2)))
            yield {
                "task": task,
                "method": method,
                "residual": float(np.sqrt(np.mean(residual**2))),
                "largest_residual": float(np.abs(residual).max()),
                "error": error,
                "original": x[:IMAGES],
                "given": known[:IMAGES],
                "images": made[:IMAGES],
            }


def draw(rows: list[Row], figure: Figure) -> None:
    strips = [("original", rows[0]["original"])]
    for row in rows:
        if row["method"] == "replacement":
            strips.append((f"{row['task']}: given", row["given"]))
        strips.append((f"{row['method']}\nerror {row['error']:.2f}", row["images"]))
    for line, (title, images) in zip(figure.subplots(len(strips), IMAGES), strips, strict=True):
        for axes, image in zip(line, to_uint8(images), strict=True):
            axes.imshow(image.repeat(3, axis=-1) if image.shape[-1] == 1 else image)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)


def summary(rows: list[Row]) -> Iterator[str]:
    yield f"{'':34}{'residual':>12}{'largest':>12}{'error':>12}"
    for row in rows:
        numbers = (row["residual"], row["largest_residual"], row["error"])
        yield f"{row['task'] + ', ' + row['method']:34}" + "".join(f"{value:12.2g}" for value in numbers)


def headline(rows: list[Row]) -> str:
    error = {(row["task"], row["method"]): f"{row['error']:.2f}" for row in rows}
    told = (f"{task} {error[task, 'replacement']} and {error[task, 'reconstruction']}" for task in TASKS)
    return f"error by replacement and by reconstruction: {', '.join(told)}"
