"""A gated PixelCNN over the codes of vqvae_mnist, told the class: vqvae_prior_transformer with another backbone.

The prior of the VQ-VAE paper (1711.00937 §4.2), with the two stacks of 1606.05328 and cached sampling.
"""

from dataclasses import replace

from experiments import vqvae_prior_transformer as transformer
from models.pixelcnn import PixelCNN

experiment = replace(
    transformer.experiment,
    model=replace(transformer.experiment.model, backbone=PixelCNN(width=96, depth=5, first_kernel=5, dropout=0.1)),
)

tiny = replace(transformer.tiny, model=replace(transformer.tiny.model, backbone=PixelCNN(width=8, depth=1)))
