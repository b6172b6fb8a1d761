"""VQ-VAE-2 of MNIST (TFDS): 7x7 codes of 512 for what is there, 14x14 more for how it looks.

1906.00446, with vision transformers for convolutions, as in vqvae_mnist.
"""

from dataclasses import replace

from experiments import vqvae_mnist as vqvae
from models.codebook import EMA
from models.observation import Gaussian
from models.vit_autoencoder import ViTDecoder, ViTEncoder
from models.vqvae2 import VQVAE2

experiment = replace(
    vqvae.experiment,
    model=VQVAE2(
        encoder=ViTEncoder(width=64, depth=1, patch=2),
        top_encoder=ViTEncoder(width=128, depth=1, patch=2),
        top_quantizer=EMA(size=512, width=8, start="kmeans", restart=0.1),
        top_decoder=ViTDecoder(width=128, depth=1, patch=2),
        quantizer=EMA(size=512, width=8, start="kmeans", restart=0.1),
        decoder=ViTDecoder(width=64, depth=1, patch=2),
        observation=Gaussian(),
        width=64,
    ),
)

tiny = replace(
    vqvae.tiny,
    model=VQVAE2(
        encoder=ViTEncoder(width=8, depth=1, heads=2, patch=7),
        top_encoder=ViTEncoder(width=8, depth=1, heads=2, patch=2),
        top_quantizer=EMA(size=8, width=4),
        top_decoder=ViTDecoder(width=8, depth=1, heads=2, patch=2),
        quantizer=EMA(size=8, width=4),
        decoder=ViTDecoder(width=8, depth=1, heads=2, patch=7),
        observation=Gaussian(),
        width=8,
    ),
)
