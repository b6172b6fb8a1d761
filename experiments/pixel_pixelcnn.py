"""Digits as sequences of pixels by a gated PixelCNN: pixel_transformer with another backbone.

van den Oord et al. 1606.05328, conditioned on the class as in its §2.3.
"""

from dataclasses import replace

from experiments import pixel_transformer
from models.pixelcnn import PixelCNN

experiment = replace(
    pixel_transformer.experiment,
    model=replace(
        pixel_transformer.experiment.model, backbone=PixelCNN(width=64, depth=5, first_kernel=5, dropout=0.1)
    ),
)

tiny = replace(pixel_transformer.tiny, model=replace(pixel_transformer.tiny.model, backbone=PixelCNN(width=8, depth=1)))
