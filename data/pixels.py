"""From encoded images to model space: x ∈ [−1, 1], scaled by the depth that the file declares.

A 1-bit PNG holds 0/1 under one decoder and 0/255 under another; dividing both by 255 makes one of them black. Here the
bytes are decoded in one way, the file's own depth decides the scale, and what leaves is full-range uint8 or uint16.
"""

import io

import numpy as np
from jaxtyping import Float
from PIL import Image

# What is opened as an image, whatever a file calls itself: Pillow would run Ghostscript on PostScript, for one.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def decode(encoded: bytes, channels: int, size: int | None = None) -> np.ndarray:
    """An image file as uint8 (1- and 8-bit files) or uint16 (16-bit files) [H, W, channels], 0 to full scale.

    Args:
      channels: 1 (grey), 3 (RGB) or 4 (RGBA); what the file holds is converted.
      size: if given, the largest centred square is cut out and resized to size × size.
    """
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.mode == "P":  # a palette's numbers are no levels: Pillow would not average them
        image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.convert("L") if image.mode == "1" else image
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BOX, box) if image.size != (size, size) else image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow has no 16-bit colour
        pixels = np.asarray(image).astype(np.uint16)
        return np.repeat(pixels[:, :, None], channels, axis=2)
    pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def to_model_space(pixels: np.ndarray) -> Float[np.ndarray, "*s"]:
    """Full-range unsigned integers of any depth to float32 in [−1, 1]."""
    if not np.issubdtype(pixels.dtype, np.unsignedinteger):
        raise ValueError(f"expected unsigned integer pixels, got {pixels.dtype}")
    return pixels.astype(np.float32) * np.float32(2.0 / np.iinfo(pixels.dtype).max) - np.float32(1.0)


def to_uint8(x: Float[np.ndarray, "*s"]) -> np.ndarray:
    """[−1, 1] to uint8, rounded to the nearest level; values outside are clipped, and what is no number is grey."""
    return np.round((np.clip(np.nan_to_num(x), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
