"""A masked transformer over the codes of vqvae_mnist, told the class, that draws 49 codes in 12 steps (MaskGIT).

2202.04200, with the cosine schedule of masks for training and drawing. Train vqvae_mnist first, or name another first
stage: `--data.codes RUN`.
"""

from dataclasses import replace

from experiments import vqvae_prior_transformer as transformer
from losses.masked import MaskedTokens
from models.masked import MaskedModel
from models.transformer import Transformer
from samplers.masked import MaskedDecoding

experiment = replace(
    transformer.experiment,
    model=MaskedModel(
        backbone=Transformer(
            width=128, depth=4, heads=4, dropout=0.1, bidirectional=True, positions="learned", context=64
        ),
        num_classes=10,
    ),
    loss=MaskedTokens(),
    sampler=MaskedDecoding(steps=12),
)

tiny = replace(
    transformer.tiny,
    model=MaskedModel(backbone=Transformer(width=8, depth=1, heads=2, bidirectional=True), num_classes=10),
    loss=experiment.loss,
    sampler=MaskedDecoding(steps=3),
)
