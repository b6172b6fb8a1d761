"""Images as grids of patches: what a vision transformer reads and writes (2010.11929 §3.1)."""

import numpy as np
from jaxtyping import Array, Float


def check_sides(x: Float[Array, "b *s"], divisor: int, who: str) -> None:
    """Raises a ValueError unless x is of images [B, H, W, C] whose sides `divisor` divides."""
    if x.ndim != 4 or x.shape[1] % divisor or x.shape[2] % divisor:
        got = "x".join(map(str, x.shape[1:3])) if x.ndim == 4 else f"arrays with {x.ndim - 1} axes"
        raise ValueError(f"{who} takes images whose sides {divisor} divides, not {got}")


def patched(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b rows columns f"]:
    """Each patch's numbers in a row: f = patch·patch·c."""
    b, height, width, channels = x.shape
    blocks = x.reshape(b, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return blocks.reshape(b, height // patch, width // patch, -1)


def unpatched(y: Float[Array, "b rows columns f"], patch: int) -> Float[Array, "b h w c"]:
    """The inverse of `patched`."""
    b, rows, columns, _ = y.shape
    blocks = y.reshape(b, rows, columns, patch, patch, -1).swapaxes(2, 3)
    return blocks.reshape(b, rows * patch, columns * patch, -1)


def positions(height: int, width: int, features: int) -> Float[np.ndarray, "tokens features"]:
    """Fixed embedding of a grid of patches: half of the features for the row, half for the column."""
    omega = 1e4 ** (-np.arange(features // 4) / (features / 4.0))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (columns, rows)]
    return np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
