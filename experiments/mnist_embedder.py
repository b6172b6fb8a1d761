"""An embedder of MNIST under ArcFace: the features that generative runs on MNIST are judged in.

`python evaluate.py RUN frechet_distance --features runs/mnist_embedder`.
"""

from dataclasses import replace

from data.images import TFDS
from losses.identification import Identification
from losses.margin_softmax import ArcFace
from metrics.embeddings import HeadAccuracy, KNNAccuracy
from models.embedder import Embedder
from models.sphereface import SphereFace
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=TFDS(name="mnist"),
    model=Embedder(net=SphereFace(depth=4, width=16, features=64)),
    loss=Identification(margin=ArcFace(scale=16.0, m=0.3)),
    metrics=(HeadAccuracy(), KNNAccuracy()),
    optimizer=Optimizer(learning_rate=1e-3, warmup=100, decay="cosine", weight_decay=1e-2),
    steps=3000,
    batch_size=256,
    ema=0.99,
    checkpoints=Checkpoints(every=1000),
)

tiny = replace(
    experiment,
    model=Embedder(net=SphereFace(depth=4, width=2, features=4)),
    metrics=(HeadAccuracy(examples=100),),
    steps=4,
    batch_size=16,
    log_every=2,
)
