"""Plain softmax over Omniglot's characters, measured on characters of other alphabets: what margins are to beat.

Characters of five alphabets, each with its quarter turns as classes of their own; verification, TAR@FAR and rank-1 on
the drawings of three alphabets that are in no training class. All `margin_omniglot_` experiments have this network, its
optimiser and its steps, and differ in the loss; with some of them in the head (sub-centres, centres, a bias), and where
examples are compared in batches that hold several of a class.
"""

from dataclasses import replace

from data.omniglot import OmniglotOpenSet
from losses.identification import Identification
from losses.margin_softmax import Softmax
from metrics.embeddings import Verification
from models.embedder import Embedder
from models.sphereface import SphereFace
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=OmniglotOpenSet(rotations=True, shift=2),
    model=Embedder(net=SphereFace(depth=4, width=16, features=128)),
    loss=Identification(margin=Softmax()),
    metrics=(Verification(),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=50, decay="cosine", weight_decay=1e-2),
    steps=1000,
    batch_size=256,
    ema=0.99,
    checkpoints=Checkpoints(every=500),
)

tiny = replace(
    experiment,
    data=OmniglotOpenSet(size=12),
    model=Embedder(net=SphereFace(depth=4, width=4, features=8)),
    metrics=(Verification(per_fold=40, examples=400, far=0.05),),
    steps=4,
    batch_size=16,
    log_every=2,
)
