"""A million synthetic identities: a tenth of the classes in a step (Partial FC, 2010.05222), W updated in place.

Over several devices W's rows are split (`--model.class-axis data`), and so is every step's part of them. W and its
momentum are 1 GiB; a checkpoint holds both.
"""

from dataclasses import replace

from data.prototypes import Prototypes
from losses.fused_head import HeadSGD
from losses.identification import Identification
from losses.margin_softmax import CosFace
from metrics.embeddings import HeadAccuracy
from models.embedder import Embedder
from models.embedding_mlp import EmbeddingMLP
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Prototypes(classes=1_000_000, dimensions=128),
    model=Embedder(net=EmbeddingMLP(width=256, depth=1, features=128), head_in_state=True),
    loss=Identification(margin=CosFace(scale=32.0, m=0.2), sample=0.1, update=HeadSGD(learning_rate=1.0)),
    metrics=(HeadAccuracy(examples=1000),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100),
    steps=2000,
    batch_size=256,
    checkpoints=Checkpoints(every=1000, latest=1),
    log_every=20,
)

tiny = replace(
    experiment,
    data=Prototypes(classes=1000, dimensions=16),
    model=Embedder(net=EmbeddingMLP(width=16, depth=1, features=8), head_in_state=True),
    metrics=(HeadAccuracy(examples=100),),
    steps=4,
    batch_size=16,
    log_every=2,
)
