"""A transformer that writes text character by character: any file, by default the sources of Python's library.

`--preset nanogpt_cpu` and `--preset nanogpt_gpu` are nanoGPT's two settings for tiny Shakespeare (the first 90 % to
train on, the rest held out), with a validation loss of 1.88 and 1.4697 nats a character as its
author reports them; that weights are averaged, and that tables do not decay, is ours.
"""

from dataclasses import replace

from data.text import Text
from losses.sequence import NextToken
from metrics.token_likelihood import TokenLikelihood
from models.language_model import LanguageModel
from models.transformer import Transformer
from samplers.autoregressive import Decoding
from training.experiment import Experiment
from training.optimizer import Optimizer

GPT2 = Transformer(positions="learned", bias=False, initial="gpt2")

experiment = Experiment(
    data=Text(context=64),
    model=LanguageModel(
        backbone=Transformer(width=128, depth=4, heads=4, context=64, activation="relu_squared", bias=False)
    ),
    loss=NextToken(),
    sampler=Decoding(length=500, temperature=0.8),
    metrics=(TokenLikelihood(examples=10_000, batch_size=200),),
    optimizer=Optimizer(method="muon", muon_rate=0.02, learning_rate=3e-3, b2=0.99, warmup=50, decay="linear"),
    steps=1400,
    batch_size=12,
    ema=0.99,
    sample_every=1000,
    sample_count=4,
)

nanogpt = Optimizer(learning_rate=1e-3, warmup=100, decay="cosine", final=0.1, b2=0.99, weight_decay=0.1, clip=1.0)

presets = {
    "nanogpt_cpu": replace(
        experiment,
        model=LanguageModel(backbone=GPT2.clone(width=128, depth=4, heads=4, context=64)),
        optimizer=nanogpt,
        steps=2000,
        batch_size=12,
        ema=0.98,
    ),
    "nanogpt_gpu": replace(
        experiment,
        data=Text(context=256),
        model=LanguageModel(backbone=GPT2.clone(width=384, depth=6, heads=6, context=256, dropout=0.2)),
        optimizer=nanogpt,
        steps=5000,
        batch_size=64,
        ema=0.99,
        precision="bfloat16",
    ),
}

tiny = replace(
    experiment,
    data=Text(context=16),
    model=LanguageModel(backbone=Transformer(width=16, depth=2, heads=2, context=16)),
    sampler=Decoding(length=24),
    metrics=(TokenLikelihood(examples=32, batch_size=16),),
    steps=20,
    batch_size=8,
    log_every=5,
    sample_every=20,
    sample_count=2,
)
