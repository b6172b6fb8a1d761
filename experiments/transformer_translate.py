"""The transformer of 1706.03762, encoder and decoder, on a generated language pair whose translations are known.

Post-norm, sinusoidal positions, one tied table, label smoothing 0.1 and the warm-up of the paper's eq. 3. `--preset
base` and `--preset big` are the paper's models (table 3) and schedule on WMT 2014 English to German, in bytes, from
TFDS: they want a GPU, and its 27.3 and 28.4 BLEU are of 37,000 word pieces. Files of one's own: `--data pair_files`.
"""

from dataclasses import replace
from typing import Any

from data.pairs import GeneratedPairs
from data.translations import TFDSPairs
from losses.sequence import NextToken
from metrics.exact_match import ExactMatch
from metrics.token_likelihood import TokenLikelihood
from models.encoder_decoder import EncoderDecoder
from models.transformer import PAPER, PRESETS, Transformer
from samplers.beam_search import BeamSearch
from training.experiment import Experiment
from training.optimizer import Optimizer


def model(**sizes: Any) -> EncoderDecoder:
    return EncoderDecoder(
        encoder=Transformer(bidirectional=True, **PAPER, **sizes), decoder=Transformer(cross=True, **PAPER, **sizes)
    )


def schedule(width: int, warmup: int) -> Optimizer:
    """§5.3: Adam with β₂ = 0.98, and the rate of eq. 3."""
    peak = (width * warmup) ** -0.5
    return Optimizer(learning_rate=peak, warmup=warmup, decay="inverse_sqrt", b2=0.98, eps=1e-9, clip=0.0)


experiment = Experiment(
    data=GeneratedPairs(words=200, length=16),
    model=model(width=128, depth=2, heads=4),
    loss=NextToken(smoothing=0.1),
    sampler=BeamSearch(beams=4, length_penalty=0.6),
    metrics=(ExactMatch(), TokenLikelihood()),
    optimizer=schedule(128, 400),
    steps=2000,
    batch_size=64,
    ema=0.99,
    sample_count=16,
)

_wmt = TFDSPairs(
    name="wmt14_translate/de-en", source_language="en", target_language="de", source_length=256, target_length=256
)

presets = {
    name: replace(
        experiment,
        data=_wmt,
        model=model(**sizes),
        optimizer=schedule(sizes["width"], 4000),
        metrics=(TokenLikelihood(),),
        steps={"base": 100_000, "big": 300_000}[name],
        batch_size=256,
        precision="bfloat16",
        ema=0.999,
    )
    for name, sizes in PRESETS.items()
}

tiny = replace(
    experiment,
    data=GeneratedPairs(words=12, length=8),
    model=model(width=16, depth=1, heads=2),
    sampler=BeamSearch(beams=2),
    metrics=(ExactMatch(examples=16),),
    steps=20,
    batch_size=8,
    log_every=5,
    sample_every=20,
    sample_count=4,
)
