"""Samples as a picture: a grid of images, or points in the plane."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data.dataset import Dataset
from data.pixels import to_uint8


def texts(data: Dataset, x: np.ndarray) -> list[str] | None:
    """What samples read, where the data is text; None where it is not."""
    if not data.vocabulary:
        return None
    try:
        return [data.decode(tokens) for tokens in x]
    except ValueError:
        return None


def write_texts(samples: Sequence[str], path: Path) -> None:
    """Samples, a line of dashes between two of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"\n{'-' * 40}\n".join(samples) + "\n")


def picture(
    x: Float[np.ndarray, "n *s"], limit: float | None = None, title: str | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Images [n, H, W, C] as a grid, enlarged to be seen; points [n, 2] as a scatter plot.

    Args:
      limit: half the width of the scatter plot; as the points need by default.
      title: of the scatter plot; how many points by default.

    Raises:
      ValueError: neither.
    """
    if x.ndim == 4 and x.shape[-1] in (1, 3):
        return grid(x)
    if x.ndim == 2 and x.shape[1] == 2:
        return _scatter(x, limit, title)
    raise ValueError(f"no picture is known for samples of shape {x.shape[1:]}")


def grid(x: Float[np.ndarray, "n h w c"], columns: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    """Images as a sheet of so many columns, by default about as many as rows."""
    images = to_uint8(x)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = max(1, height // 16)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 96, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    # Small digits on a screen of today are specks: enlarge by whole numbers, without smoothing.
    factor = max(1, 720 // max(sheet.shape[:2]))
    sheet = np.kron(sheet, np.ones((factor, factor, 1), np.uint8))
    return np.repeat(sheet, 3, axis=2) if channels == 1 else sheet


def _scatter(points: np.ndarray, limit: float | None, title: str | None) -> np.ndarray:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6, linewidths=0)
    axes.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=title or f"{len(points)} samples")
    if limit is not None:
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    return figure_pixels(figure)


def figure_pixels(figure: Any) -> UInt8[np.ndarray, "height width 3"]:
    """A matplotlib figure as it would be printed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return np.asarray(Image.open(buffer).convert("RGB"))


FRAMES = 60  # of an animation; longer trajectories are thinned


def save_gif(trajectory: Float[np.ndarray, "states n *s"], path: Path) -> None:
    """States from noise to data as an animation that rests on the last.

    Raises:
      ValueError: no picture is known for such samples.
    """
    last = len(trajectory) - 1
    shown = np.unique(np.linspace(0, last, min(FRAMES, last + 1)).round().astype(int))
    limit = None
    if trajectory.ndim == 3 and trajectory.shape[-1] == 2:
        # The data's frame: noise of a variance-exploding path would leave the data a dot.
        limit = float(min(np.abs(trajectory[0]).max(), 3.0 * np.abs(trajectory[-1]).max()))
    frames = []
    for i in shown:
        # Noise on a path that is not variance-preserving is scaled to the range that a picture has.
        state = trajectory[i] if limit else trajectory[i] / max(1.0, float(trajectory[i].std()))
        frames.append(Image.fromarray(picture(state, limit, f"state {i} of {last}")))
    save_frames(frames, path)


def save_frames(frames: Sequence[Image.Image], path: Path) -> None:
    """Pictures as an animation that rests on the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [80] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


def save_png(pixels: UInt8[np.ndarray, "height width 3"], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)
