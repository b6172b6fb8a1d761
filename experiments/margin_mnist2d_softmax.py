"""MNIST in a plane: two-dimensional embeddings under the plain softmax, as in L-Softmax's figure 2 (1612.02295).

All `margin_mnist2d_` experiments have this network, its optimiser and its steps, and differ in the loss alone;
`reproduce.py margin_features` draws them side by side.
"""

from dataclasses import replace

from data.images import TFDS
from losses.identification import Identification
from losses.margin_softmax import Softmax
from metrics.angles import Angles
from metrics.embeddings import HeadAccuracy
from models.embedder import Embedder
from models.sphereface import SphereFace
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Embedder(net=SphereFace(depth=4, width=16, features=2)),
    loss=Identification(margin=Softmax()),
    metrics=(HeadAccuracy(angles=False), HeadAccuracy(), Angles()),
    optimizer=Optimizer(learning_rate=2e-3, warmup=100, decay="cosine"),
    steps=3000,
    batch_size=256,
    ema=0.99,
    checkpoints=Checkpoints(every=1000),
)

tiny = replace(
    experiment,
    model=Embedder(net=SphereFace(depth=4, width=2, features=2)),
    metrics=(HeadAccuracy(examples=100), Angles(examples=100)),
    steps=4,
    batch_size=16,
    log_every=2,
)
